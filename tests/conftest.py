"""Options and fixtures of all tests: --slow runs the slow ones; gpu ones run where there is a GPU; a seeded
generator."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# Machines with AMX compile chains and updates by default. A compiler cannot trace type-checked functions, and no test
# is to depend on the machine: compiled.py, in a process of its own, tells that compiled energies are the eager ones.
os.environ["TORCHDYNAMO_DISABLE"] = "1"

# The same examples at every run: what passed here passes there.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config, items):
    skip_slow = pytest.mark.skip(reason="slow: run with --slow")
    skip_gpu = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(skip_slow)
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip_gpu)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def real_data(tmp_path_factory) -> Path:
    """A data folder with the real CIFAR-10: IGEBM_DATA, or unpacked from ../shared; the test is skipped without
    either."""
    given = os.environ.get("IGEBM_DATA")
    if given and (Path(given) / "cifar10.npz").exists():
        return Path(given)
    unpack = Path(__file__).resolve().parents[2] / "shared" / "data" / "unpack.py"
    if not unpack.exists():
        pytest.skip(f"no real data: neither IGEBM_DATA with cifar10.npz nor {unpack.parent}")
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("data")
    subprocess.run([sys.executable, unpack, folder], check=True, capture_output=True)
    return folder


@pytest.fixture
def quick_classifier(tmp_path_factory, monkeypatch) -> Path:
    """A data folder in which the classifiers that experiments ask for are kept, trained for 50 steps each (which is
    enough for the digits); and no Inception network, nor an attempt to download it."""
    from igebm.evaluation import classifier

    folder = tmp_path_factory.getbasetemp() / "kept"
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(classifier, "steps_for", lambda images: 50)
    monkeypatch.setenv("IGEBM_DATA", str(folder))
    monkeypatch.setenv("IGEBM_INCEPTION", str(folder / "none.pt"))
    return folder


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; skips where there is none, or no playwright."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as p:
        try:
            opened = p.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {str(error).splitlines()[0]}")
        yield opened
        opened.close()
