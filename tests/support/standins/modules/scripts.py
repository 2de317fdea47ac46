"""Scripts of extensions: load them, and run those that are always visible."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any, NamedTuple

from modules import errors, paths, script_callbacks

AlwaysVisible = object()
CALLS = (
    "before_process",
    "process",
    "before_process_batch",
    "after_extra_networks_activate",
    "process_batch",
    "before_hr",
    "process_before_every_sampling",
    "post_sample",
    "postprocess_batch",
    "postprocess",
)


class ScriptClassData(NamedTuple):
    """A script class and its module."""

    script_class: type[Script]
    path: str
    basedir: str
    module: Any


current_basedir = ""
scripts_data: list[ScriptClassData] = []
loaded_modules: dict[str, Any] = {}


class Script:
    name = filename = section = group = infotext_fields = paste_field_names = None
    args_from = args_to = 0
    alwayson = is_txt2img = is_img2img = False

    def title(self) -> str:
        raise NotImplementedError

    def show(self, is_img2img: bool) -> Any:
        return True

    def ui(self, is_img2img: bool) -> Any:
        return None

    def elem_id(self, item_id: str) -> str:
        return f"script_{item_id}"


for _name in CALLS:
    setattr(Script, _name, lambda self, p, *args, **kwargs: None)


def basedir() -> str:
    return current_basedir


def load_scripts(*, forge: bool) -> None:
    """Run `extensions/*/scripts/*.py`, the repository's root first on `sys.path` while each runs (Forge: and after)."""
    global current_basedir
    scripts_data.clear()
    script_callbacks.clear_callbacks()
    files = sorted(Path(paths.extensions_dir).glob("*/scripts/*.py"), key=lambda file: (file.parts[-3], file.name))
    if forge:
        for file in files:
            if str(file.parents[1]) not in sys.path:
                sys.path.insert(0, str(file.parents[1]))
    before = sys.path
    for file in files:
        current_basedir = str(file.parents[1])
        sys.path = [current_basedir, *before]
        try:
            spec = importlib.util.spec_from_file_location(file.name, file)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)  # not entered in sys.modules
            loaded_modules[str(file)] = module
            for found in vars(module).values():
                if inspect.isclass(found) and issubclass(found, Script):
                    found.filename = str(file)
                    scripts_data.append(ScriptClassData(found, str(file), current_basedir, module))
        except Exception:
            errors.report(f"Error loading script: {file.name}", exc_info=True)
        finally:
            sys.path = before
            current_basedir = paths.script_path


class ScriptRunner:
    """The scripts of one tab that are always on; each has the values that the API gave under its title."""

    def __init__(self, is_img2img: bool | None = None) -> None:
        """Without a tab, it is empty, as in the hosts before they initialize it."""
        self.alwayson_scripts = []
        if is_img2img is None:
            return
        for script_class, *_ in scripts_data:
            try:
                script = script_class()
                script.is_img2img, script.is_txt2img = is_img2img, not is_img2img
                if script.show(is_img2img) is AlwaysVisible:
                    script.alwayson = True
                    self.alwayson_scripts.append(script)
            except Exception:
                errors.report(f"Error initializing {script_class}", exc_info=True)

    def call(self, what: str, p, *given: Any, **kwargs: Any) -> None:
        for script in self.alwayson_scripts:
            try:
                args = p.alwayson_scripts.get(script.title().lower(), [])
                getattr(script, what)(p, *given, *args, **kwargs)
            except Exception:
                errors.report(f"Error running {what}: {script.filename}", exc_info=True)
