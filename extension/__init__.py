"""Webui extension: hypernetworks in AUTOMATIC1111, Forge and their forks.

`scripts/hypernetworks.py` loads this package as `hnloader_webui`, since other extensions may also ship a package named
`extension`. Importing it imports nothing from a webui.
"""

from __future__ import annotations

from .core import Extension
from .startup import start

__all__ = ["Extension", "start"]
