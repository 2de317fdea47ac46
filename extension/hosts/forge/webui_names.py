"""Names of Forge and its forks."""

from __future__ import annotations

# Parts of the versions of the forks. Forge's own begins with `f` or `2`, reForge's with `1`.
_NAMES = {"classic": "Forge Classic", "neo": "Forge Neo", "ersatz": "ersatzForge"}


def webui_name(version: str) -> str:
    """Return the name of the webui with this `modules_forge.forge_version.version`."""
    for part, name in _NAMES.items():
        if part in version:
            return name
    return "reForge" if version.startswith("1") else "Forge"
