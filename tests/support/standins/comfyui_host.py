"""Load the node pack into a stand-in of ComfyUI, as ComfyUI does: under the path of the clone."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.support.paths import ROOT

_HOST = ("aiohttp", "comfy", "folder_paths", "server")
_PACK = str(ROOT).replace(".", "_x_")


@dataclass
class Host:
    """A running stand-in: the module of the clone, its server, and the folder of hypernetworks."""

    pack: ModuleType
    server: Any
    folder: Path

    def node(self, name: str) -> Any:
        """Return a new node."""
        return self.pack.NODE_CLASS_MAPPINGS[f"Hnloader{name}"]()

    def part(self, name: str) -> ModuleType:
        """Return a module of the node pack."""
        return sys.modules[f"{_PACK}.node_pack.{name}"]

    def load(self, model: Any, file: str, strength: float = 1.0, **details: Any) -> Any:
        """Return the model after a Load node."""
        return self.node("LoadHypernetwork").load(model, file, strength, **details)[0]


@contextmanager
def running(folder: Path) -> Iterator[Host]:
    """Import the clone in a stand-in whose hypernetworks are in `folder`, and forget both in the end."""
    place = str(Path(__file__).parent / "comfyui")
    sys.path.insert(0, place)
    try:
        server = importlib.import_module("server").PromptServer()
        folder_paths = importlib.import_module("folder_paths")
        paths, known = folder_paths.folder_names_and_paths["hypernetworks"]
        paths.append(str(folder))
        folder_paths.get_filename_list("hypernetworks")  # as the built-in node does
        yield Host(_import_clone(), server, folder)
        assert known == folder_paths.folder_names_and_paths["loras"][1] == {".ckpt", ".pt", ".safetensors"}
    finally:
        sys.path.remove(place)
        for name in list(sys.modules):
            if name.partition(".")[0] in _HOST or name == _PACK or name.startswith(f"{_PACK}."):
                del sys.modules[name]


def _import_clone() -> ModuleType:
    spec = importlib.util.spec_from_file_location(_PACK, ROOT / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[_PACK] = module
    spec.loader.exec_module(module)
    return module
