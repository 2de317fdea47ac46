"""Says that a file is unsafe, from what its pickle names or calls that no hypernetwork needs."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from hnloader.errors import UnsafeFileError
from hnloader.formats.pickles import Refusal
from hnloader.texts import as_text

# Globals of programs whose full checkpoints carry more than tensors. They are not honoured either; they only
# decide whether a file is called "another kind of model" (or a damaged one) or "unsafe". Of a package only classes
# count, and none that it would have from a module of Python's: `pytorch_lightning.trainer.os.system` is a call of the
# system, by a name that begins well.
_CLASS = re.compile(r"(pytorch_lightning|lightning|lightning_fabric|omegaconf)\.(?P<modules>([a-z_0-9]+\.)*)[A-Z]\w*")
_EXACT = re.compile(
    r"numpy\.(core|_core)\.multiarray\.(scalar|_reconstruct)|numpy\.(dtype|ndarray)|torch\.storage\.\w*Storage"
    r"|torch\.nn\.modules\.container\.ParameterDict|collections\.defaultdict|typing\.Any"
)


def is_inert(name: str) -> bool:
    """True for a global that sound checkpoints of other kinds name and that runs nothing of the file's choice."""
    found = _CLASS.fullmatch(name)
    if found is not None:
        return not sys.stdlib_module_names.intersection(found["modules"].split("."))
    return _EXACT.fullmatch(name) is not None


def check_refusals(refused: Sequence[Refusal], label: str, *, inert_allowed: bool) -> None:
    """Raise UnsafeFileError for what a pickle may not hold.

    Args:
        refused: what the pickle names or calls that is not on the allow-list.
        label: what messages call the file.
        inert_allowed: the file is refused anyway, as another kind of model or as damaged, so that the usual
            extras of full checkpoints need no alarm.
    """
    if inert_allowed and all(is_inert(refusal.name) for refusal in refused):
        return
    if refused:
        named = ", ".join(dict.fromkeys(_printable(refusal) for refusal in refused[:3]))
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        raise UnsafeFileError(
            f"{label} is not safe: its pickle holds {named}{more}. A hypernetwork holds only numbers, text and "
            "tensors. Nothing was run. Do not open the file with other programs; get it from another source."
        )


def _printable(refusal: Refusal) -> str:
    text = f"{as_text(refusal.what, 160)} at byte {refusal.offset}"
    return "".join(char if char.isprintable() else "?" for char in text)[:160]
