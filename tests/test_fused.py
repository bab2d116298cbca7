"""The GPU's fused kernels: by Triton's interpreter on any machine, and on a GPU as they are."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from igebm.nets.image import ImageEnergy


def deviations(how: str) -> dict:
    """In a process without type checks, which Triton's compiler cannot read."""
    script = Path(__file__).with_name("fused.py")
    done = subprocess.run([sys.executable, script, how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_the_fused_kernels_compute_the_plain_network():
    """Every way that a block's size, skip, pool, gain and label can go, in float32: energies and gradients are those of
    the network that is not folded, in float64."""
    found = deviations("interpreted")
    assert found["cases"] == 5 and found["energy"] < 1e-5 and found["gradient"] < 1e-5


@pytest.mark.gpu
def test_on_a_gpu_they_are_as_exact_as_cudnn_and_launch_as_graphs():
    """bfloat16's error is that of the eager network in it; and a chain of graphs is, bit for bit, the chain of the same
    kernels one by one, with the same random numbers, under new labels and new weights too."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("the kernels are for Hopper")
    found = deviations("gpu")
    assert found["energy"] < 0.03 and found["as_good"] < 1.1 and found["launched"] == [True] * 3


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
@pytest.mark.parametrize(
    "settings, size",
    [
        ({"dropout": 0.1}, (8, 8)),
        ({"modulation": "release"}, (8, 8)),
        ({"activation": "swish"}, (8, 8)),
        ({"scales": 2}, (8, 8)),
        ({"stem": "4x4"}, (8, 8)),
        ({"flat": (8, 8)}, (8, 8)),
        ({"skip_down": True, "skip_kernel": 3}, (8, 8)),
        ({}, (8, 12)),
        ({}, (256, 256)),
    ],
)
def test_what_they_are_not_written_for_is_left_to_others(settings, size):
    from igebm.nets import fused

    blocks = [(1, True), (1, False)]
    assert not fused.suits(ImageEnergy(3, 64, blocks, 3, **settings), torch.bfloat16, (2, 3, *size))


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_what_they_have_no_room_for_is_left_to_others():
    """Widths that no tile divides, channels beyond the stem's, float32, and more numbers than 32 bits count: 2^15 x
    2^10 x 2^6 are 2^31."""
    from igebm.nets import fused

    suits = lambda net, dtype=torch.bfloat16, shape=(2, 3, 8, 8): fused.suits(net, dtype, shape)
    net = lambda channels, width: ImageEnergy(channels, width, [(1, True), (1, False)], 3)
    plain = net(3, 64)
    assert suits(plain) and not suits(plain, torch.float32)
    assert not suits(net(3, 48)) and not suits(net(3, 192)) and not suits(net(8, 64))
    assert suits(plain, shape=(2**15 - 1, 3, 32, 32)) and not suits(plain, shape=(2**15, 3, 32, 32))
