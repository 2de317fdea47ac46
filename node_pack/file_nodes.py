"""Nodes about files: inspect and convert."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hnloader
from hnloader.conversion import convert
from hnloader.errors import HypernetworkError
from hnloader.inspection import FileInfo
from hnloader.texts import as_text
from hnloader.units import size_text

from . import hypernetwork_files as files

INSPECTING = "utils/hypernetworks"
_AS_STORED = "as stored"
_LONGEST = 1_000  # characters of a line, which a file can fill with anything


def file_input(tooltip: str = "File in models/hypernetworks: .pt, .safetensors or .hns.") -> tuple[Any, dict[str, str]]:
    """Return a list of files as an input of a node."""
    return files.choices(), {"tooltip": tooltip}


class FileNode:
    """Base of nodes with a list of files named `hypernetwork`."""

    @classmethod
    def IS_CHANGED(cls, hypernetwork: str | None = None, **others: object) -> object:  # noqa: N802
        """Return a value that changes with the file, because ComfyUI reuses the result of an unchanged node."""
        if hypernetwork is None:  # connected to another node
            return ""
        return files.stamps_of(files.path_of(hypernetwork))

    @classmethod
    def VALIDATE_INPUTS(cls, hypernetwork: str | None = None) -> bool | str:  # noqa: N802
        """Return True, or the reason why a file cannot be found, before anything runs."""
        try:
            if hypernetwork is not None:
                files.path_of(hypernetwork)
        except HypernetworkError as error:
            return str(error)
        return True


class HypernetworkInfo(FileNode):
    """Describe a hypernetwork file."""

    DESCRIPTION = "Shows which models a hypernetwork file is for, how it computes and who wrote it."
    CATEGORY = INSPECTING
    FUNCTION = "inspect"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("info",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the inputs."""
        return {"required": {"hypernetwork": file_input()}}

    def inspect(self, hypernetwork: str) -> dict[str, Any]:
        """Return the facts about the file as text."""
        path = files.path_of(hypernetwork)
        with files.without_folder_names():
            text = described(hnloader.inspect(path, files.folders()), hypernetwork)
        return {"ui": {"text": [text]}, "result": (text,)}


def described(info: FileInfo, name: str) -> str:
    """Return the facts about a file, one in each line."""
    lines = {
        "File": f"{name} ({size_text(info.size)}, sha256 {info.short_hash})",
        "Name": info.name,
        "For": " or ".join(info.made_for) or f"an unknown model with the widths {', '.join(map(str, info.widths))}",
        "Widths": ", ".join(info.scopes),
        "Layers": str(info.architecture) if info.architecture is not None else "a composition of several files",
        "Members": ", ".join(member.name for member in info.members),
        "Dtype": ", ".join(info.dtypes),
        "Written by": f"{info.program}, {info.variant}" if info.variant else info.program,
        "Steps": "" if info.step is None else str(info.step),
        "Trained on": info.checkpoint_name or info.checkpoint or "",
    }
    return "\n".join(f"{key}: {as_text(value, _LONGEST)}" for key, value in lines.items() if value)


class ConvertHypernetwork(FileNode):
    """Convert a hypernetwork file, in the folder of the source."""

    DESCRIPTION = (
        "Converts a hypernetwork file between .pt and .safetensors and verifies the result. "
        "The new file is in the folder of the old one, which stays unchanged."
    )
    CATEGORY = INSPECTING
    FUNCTION = "convert"
    OUTPUT_NODE = True
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("hypernetwork",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        """Return the inputs."""
        dtypes = [_AS_STORED, "float32", "float16", "bfloat16"]
        return {
            "required": {
                "hypernetwork": file_input("File to convert: .pt or .safetensors."),
                "to": (["safetensors", "pt"], {"tooltip": "Format of the new file."}),
                "dtype": (dtypes, {"tooltip": "'as stored' keeps all values bit for bit."}),
                "if_exists": (["skip", "rename", "overwrite"], {"tooltip": "What to do if the new file exists."}),
            }
        }

    @classmethod
    def IS_CHANGED(cls, hypernetwork: str | None = None, **others: object) -> object:  # noqa: N802
        """Return a value that differs from itself: the new file may be missing at the next run."""
        return float("nan")

    def convert(self, hypernetwork: str, to: str, dtype: str, if_exists: Any) -> dict[str, Any]:
        """Convert the file; return the name of the new one."""
        source = files.path_of(hypernetwork)
        cast_to = None if dtype == _AS_STORED else dtype
        with files.without_folder_names():
            done = convert(source, source.with_suffix(f".{to}"), dtype=cast_to, on_existing=if_exists)
        name = (Path(hypernetwork.replace("\\", "/")).parent / done.target.name).as_posix()
        text = f"{name}: the file exists, so it was skipped." if done.action == "skipped" else f"Saved {name}."
        if done.verified:
            text += f" Verified: {', '.join(done.verified)}."
        return {"ui": {"text": ["\n".join([text, *done.notes])]}, "result": (name,)}
