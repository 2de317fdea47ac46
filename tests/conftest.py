from __future__ import annotations

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Of tests that a shell started in the background: the programs that they start would never see Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Tests run on the processor everywhere: what they expect are its bits. `make gpu` has the checks for a graphics card.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: beside other processes of tests, each computes in one thread.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # The width of the terminal that pytest-xdist was started from is not that of what tests read.
    os.environ.pop("COLUMNS", None)

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.tiny_model import save_hypernetwork, save_model

# What a test finds must not depend on how busy the machine is: hypothesis would fail inputs that take over 200 ms.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where pages keep their index: not the user's folder, for programs that tests start as well."""
    place = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place))
        yield place


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with a complete model of random weights: 32 x 32 images, widths 16 and 24."""
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def styles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with hypernetworks `ink` and `oil` for the tiny model, and `sd1` of another model's widths."""
    folder = tmp_path_factory.mktemp("styles")
    save_hypernetwork(folder / "ink.pt", seed=1)
    save_hypernetwork(folder / "oil.safetensors", seed=2)
    save_hypernetwork(folder / "sd1.pt", widths=(768,))
    return folder
