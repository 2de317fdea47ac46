"""Folders of models. Several kinds of models share one set of suffixes."""

from __future__ import annotations

from pathlib import Path

SHARED = {".ckpt", ".pt", ".safetensors"}
folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {"hypernetworks": ([], SHARED), "loras": ([], SHARED)}


def get_folder_paths(name: str) -> list[str]:
    return folder_names_and_paths[name][0][:]


def get_filename_list(name: str) -> list[str]:
    paths, suffixes = folder_names_and_paths[name]
    found = {}
    for path in paths:
        for file in sorted(Path(path).rglob("*")):
            if file.suffix.lower() in suffixes:
                found.setdefault(str(file.relative_to(path)))
    return list(found)


def get_full_path(name: str, filename: str) -> str | None:
    for path in folder_names_and_paths[name][0]:
        if (Path(path) / filename).is_file():
            return str(Path(path) / filename)
    return None
