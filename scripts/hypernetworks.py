"""The entry for webuis: every file in `scripts/` is executed when they start and when their page is reloaded."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

_NAME = "hnloader_webui"
# Where the webui found this file: two links to one folder are two copies to it.
_ENTRY = os.path.abspath(__file__)  # noqa: PTH100 - Path.absolute keeps `..`
_ROOT = Path(__file__).resolve().parent.parent
_OLDEST = (3, 10)


def _start() -> None:
    """Load the extension under a name of its own and start it; whatever fails, the webui goes on without it."""
    other = getattr(sys.modules.get(_NAME), "entry", _ENTRY)
    if other != _ENTRY:
        print(f"[hnloader] Two copies are installed. {_folder(other)} is used, {_folder(_ENTRY)} is not: remove one.")
        return
    try:
        if sys.version_info[:2] < _OLDEST:
            raise RuntimeError(f"Python {sys.version.split()[0]} is too old, {'.'.join(map(str, _OLDEST))} is needed")
        _say_whose_library()
        extension = _load()
        # The host looks for classes of scripts among the names of this module.
        globals()["HypernetworksPanel"] = extension.script_class(extension.start())
    except Exception as error:
        print(f"[hnloader] Hypernetworks are off: {type(error).__name__}: {error}. See docs/webui.md in {_ROOT}.")


def _folder(entry: str) -> Path:
    return Path(entry).parent.parent


def _say_whose_library() -> None:
    """Another `hnloader` than the one beside this file is used if something has imported it before."""
    import hnloader

    used = Path(str(hnloader.__file__)).resolve().parent
    if used != _ROOT / "hnloader":
        version = getattr(hnloader, "__version__", "of an unknown version")
        print(f"[hnloader] Using hnloader {version} from {used}, not the extension's own: uninstall that one.")


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
    vars(module)["entry"] = _ENTRY
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    return module


_start()
