from __future__ import annotations

import gc
import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background processes with SIGINT ignored, and programs that the tests start would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Tests expect the results of the CPU. `make gpu` has the checks for GPUs.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: one thread for each of the parallel processes.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # The tests must not depend on the width of the terminal that started pytest-xdist.
    os.environ.pop("COLUMNS", None)

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.standins.webui import Webui
from tests.support.standins.webui import running as running_webui
from tests.support.tiny_model import save_hypernetwork, save_model

# Results must not depend on the load of the machine; by default, hypothesis fails inputs that take over 200 ms.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Exclude the imported modules from garbage collection, and collect less often: this saves time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000)


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Use a temporary folder for the index of the pages, also in programs that tests start."""
    place = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place))
        yield place


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a complete diffusers model with random weights: 32 x 32 images, widths 16 and 24."""
    return save_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_predictor(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a predictor of the tiny model, after a few steps of training."""
    from tests.support.predictors import save_predictor_of

    return save_predictor_of(tiny_model, tmp_path_factory.mktemp("predictor"))


@pytest.fixture(scope="session")
def styles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save hypernetworks `ink` and `oil` for the tiny model, and `sd1` with other widths."""
    folder = tmp_path_factory.mktemp("styles")
    save_hypernetwork(folder / "ink.pt", seed=1)
    save_hypernetwork(folder / "oil.safetensors", seed=2)
    save_hypernetwork(folder / "sd1.pt", widths=(768,))
    return folder


@pytest.fixture(params=["a1111", "forge"])
def webui(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Webui]:
    """A stand-in webui, not started yet."""
    with running_webui(tmp_path / "webui", request.param) as webui:
        yield webui
