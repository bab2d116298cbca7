"""The network made a classifier by a few labels (Table 1): the last layer replaced, all weights trained, beside the
same network from scratch. `igebm eval finetune` does it with all labels, flips, crops and curves.
"""

import numpy as np
import torch
import torch.nn.functional as F
import tyro

import igebm
from igebm import data
from igebm.evaluation.finetune import Classifier
from igebm.model import build_image_net
from igebm.nets.layers import power_iteration


def learn(pretrained: bool, labels: int, steps: int, seed: int = 0) -> float:
    """The share of test digits that are given their class, after `steps` of Adam on `labels` of the training digits."""
    torch.manual_seed(seed)
    ebm = igebm.load("digits")
    train, test = data.load("digits"), data.load("digits", "test")
    net = build_image_net(ebm.model.preset, ebm.model.shape)
    if pretrained:
        net.load_state_dict(ebm.model.net.state_dict())
    chosen = np.random.default_rng(seed).permutation(len(train.x))[:labels]
    x, y = ebm.pixels(train.x[chosen]), torch.from_numpy(train.y[chosen])
    classifier = Classifier(net, 10, x)
    adam = torch.optim.Adam(classifier.parameters(), lr=1e-3)
    for _ in range(steps):
        some = torch.randint(len(x), (64,))
        loss = F.cross_entropy(classifier(x[some]), y[some])
        adam.zero_grad()
        loss.backward()
        adam.step()
        power_iteration(classifier)
    with torch.no_grad():
        return (classifier(ebm.pixels(test.x)).argmax(1).numpy() == test.y).mean().item()


def main(labels: int = 100, steps: int = 200) -> dict[str, float]:
    found = {name: learn(name == "pre-trained", labels, steps) for name in ("pre-trained", "from scratch")}
    for name, share in found.items():
        print(f"{name:>12}: {100 * share:.1f} % of test digits, from {labels} labelled ones")
    return found


if __name__ == "__main__":
    tyro.cli(main)
