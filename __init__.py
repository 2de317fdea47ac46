"""Entry point of the ComfyUI node pack: clone this repository into `custom_nodes`.

ComfyUI imports this file under the path of the clone. Python also finds it as `hnloader` if it starts in the folder
that holds the clone; then it loads the library in its place. docs/comfyui.md describes the nodes.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

_LIBRARY = Path(__file__).resolve().parent / "hnloader"


def _load_library() -> None:
    """Import the library of this clone, without adding the clone to `sys.path`."""
    spec = importlib.util.spec_from_file_location(
        "hnloader", _LIBRARY / "__init__.py", submodule_search_locations=[str(_LIBRARY)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{_LIBRARY} is missing. Clone the repository again.")
    module = importlib.util.module_from_spec(spec)
    sys.modules["hnloader"] = module
    spec.loader.exec_module(module)


def _report_other_library() -> None:
    """Report if another `hnloader` was imported before this one, for example by another node pack."""
    library = sys.modules["hnloader"]
    used = Path(str(library.__file__)).resolve().parent
    if used != _LIBRARY:
        version = getattr(library, "__version__", "(unknown version)")
        print(f"[hnloader] Using hnloader {version} from {used} instead of the clone's own. Uninstall that one.")


if __name__ == "hnloader":
    _load_library()
elif importlib.util.find_spec("folder_paths") is not None:  # in ComfyUI
    if "hnloader" not in sys.modules:
        _load_library()
    _report_other_library()

    _pack = importlib.import_module(".node_pack", __name__)
    NODE_CLASS_MAPPINGS = _pack.NODE_CLASS_MAPPINGS
    NODE_DISPLAY_NAME_MAPPINGS = _pack.NODE_DISPLAY_NAME_MAPPINGS
    WEB_DIRECTORY = "./node_pack/web"
