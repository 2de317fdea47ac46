"""The entry for webuis: every file in `scripts/` is executed when they start and when their page is reloaded."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_NAME = "hnloader_webui"
_ROOT = Path(__file__).resolve().parent.parent


def _start() -> None:
    """Load the extension under a name of its own and start it; whatever fails, the webui goes on without it."""
    loaded = sys.modules.get(_NAME)
    if loaded is not None and Path(str(loaded.__file__)).parent.parent != _ROOT:
        print(
            f"[hnloader] Two copies are installed. {Path(str(loaded.__file__)).parent.parent} runs, {_ROOT} does not."
        )
        return
    try:
        import hnloader

        own = Path(str(hnloader.__file__)).resolve().parent == _ROOT / "hnloader"
        if not own:
            print(f"[hnloader] Using hnloader {hnloader.__version__} from {Path(str(hnloader.__file__)).parent}.")
        extension = _load()
        # The host looks for classes of scripts among the names of this module.
        globals()["HypernetworksPanel"] = extension.script_class(extension.start())
    except Exception as error:
        print(f"[hnloader] Hypernetworks are off: {type(error).__name__}: {error}. See docs/webui.md in {_ROOT}.")


def _load() -> ModuleType:
    """The package `extension`, executed anew, with everything in it."""
    for name in [name for name in sys.modules if name == _NAME or name.startswith(f"{_NAME}.")]:
        del sys.modules[name]
    folder = _ROOT / "extension"
    spec = importlib.util.spec_from_file_location(
        _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is missing")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    return module


_start()
