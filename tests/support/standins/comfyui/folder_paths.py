"""Folders of models. Several kinds of models share one set of suffixes."""

from __future__ import annotations

from pathlib import Path

SHARED = {".ckpt", ".pt", ".safetensors"}
folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {"hypernetworks": ([], SHARED), "loras": ([], SHARED)}


def get_folder_paths(name: str) -> list[str]:
    return folder_names_and_paths[name][0][:]


# Lists by kind, with the times of change of all folders.
filename_list_cache: dict[str, tuple[list[str], list[int]]] = {}


def get_filename_list(name: str) -> list[str]:
    paths, suffixes = folder_names_and_paths[name]
    folders = [each for path in paths for each in (Path(path), *Path(path).rglob("*")) if each.is_dir()]
    times = [each.stat().st_mtime_ns for each in folders]
    if name in filename_list_cache and filename_list_cache[name][1] == times:
        return filename_list_cache[name][0]
    found: dict[str, None] = {}
    for path in paths:
        for file in sorted(Path(path).rglob("*")):
            if file.suffix.lower() in suffixes:
                found.setdefault(str(file.relative_to(path)))
    filename_list_cache[name] = (list(found), times)
    return list(found)


def get_full_path(name: str, filename: str) -> str | None:
    for path in folder_names_and_paths[name][0]:
        if (Path(path) / filename).is_file():
            return str(Path(path) / filename)
    return None
