"""Entry script. Webuis execute every file in `scripts/` when they start and when they reload their page."""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType

_NAME = "hnloader_webui"
# The path under which the webui found this file: it treats two links to one folder as two copies.
_ENTRY = os.path.abspath(__file__)  # noqa: PTH100 - Path.absolute keeps `..`
_ROOT = Path(__file__).resolve().parent.parent
_OLDEST = (3, 10)


def _start() -> None:
    """Load and start the extension. If that fails, the webui continues without it."""
    other = getattr(sys.modules.get(_NAME), "entry", _ENTRY)
    if other != _ENTRY:
        print(f"[hnloader] Two copies are installed. {_folder(other)} is used, {_folder(_ENTRY)} is not. Remove one.")
        return
    try:
        if sys.version_info[:2] < _OLDEST:
            wanted = ".".join(map(str, _OLDEST))
            raise RuntimeError(f"Python {sys.version.split()[0]} is older than {wanted}.")
        _report_other_library()
        # The webui looks for script classes among the names of this module.
        globals().update(_load().start().exports)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        print(f"[hnloader] Hypernetworks are off: {reason}. See docs/webui.md in {_ROOT}.")
        with suppress(Exception):
            globals()["HypernetworksOff"] = _notice()


def _notice() -> type:
    """Return a script with a line on the page: the webui cuts tags out of prompts without a word."""
    import gradio
    from modules import scripts

    class HypernetworksOff(scripts.Script):  # type: ignore[misc, unused-ignore]
        def title(self) -> str:
            return "Hypernetworks (off)"

        def show(self, is_img2img: bool) -> object:
            return scripts.AlwaysVisible

        def ui(self, is_img2img: bool) -> list[object]:
            text = "Hypernetworks are off, and &lt;hypernet:...&gt; has no effect. The console gives the reason."
            gradio.HTML(f'<p role="alert">{text}</p>')
            return []

    return HypernetworksOff


def _folder(entry: str) -> Path:
    return Path(entry).parent.parent


def _report_other_library() -> None:
    """Report if another installed `hnloader` was imported before this one."""
    import hnloader

    used = Path(str(hnloader.__file__)).resolve().parent
    if used != _ROOT / "hnloader":
        version = getattr(hnloader, "__version__", "(unknown version)")
        print(f"[hnloader] Using hnloader {version} from {used} instead of the extension's own. Uninstall that one.")


def _load() -> ModuleType:
    """Execute the package `extension` and everything in it again."""
    for name in [name for name in sys.modules if name == _NAME or name.startswith(f"{_NAME}.")]:
        del sys.modules[name]
    folder = _ROOT / "extension"
    spec = importlib.util.spec_from_file_location(
        _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"{folder} is missing.")
    module = importlib.util.module_from_spec(spec)
    vars(module)["entry"] = _ENTRY
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    return module


_start()
