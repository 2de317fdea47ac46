"""The webui extension: hypernetworks in AUTOMATIC1111 and Forge.

`scripts/hypernetworks.py` loads this package under the name `hnloader_webui`, because other extensions may have a
package called `extension` too. Nothing of a webui is imported before `start`.
"""

from __future__ import annotations

from .panel import script_class
from .runtime import Extension, start

__all__ = ["Extension", "script_class", "start"]
