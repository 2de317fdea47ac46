"""Read text files in the encodings that people save them in."""

from __future__ import annotations

import codecs
from pathlib import Path

from hnloader.files import LARGEST_TEXT, read_regular

# UTF-32 before UTF-16, because its mark begins with that of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path, largest: int = LARGEST_TEXT) -> str:
    """Return text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark; OSError or ValueError otherwise."""
    data = read_regular(path, largest)
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"Invalid {encoding.upper().removesuffix('-SIG')}. Save it as UTF-8.") from error
    if "\0" in text:
        raise ValueError("Invalid UTF-8. Save it as UTF-8.")
    return text


def reason_of(error: BaseException) -> str:
    """Return the reason of an error as a short sentence."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    text = " ".join(text.split())[:200]
    return text if text.endswith((".", "!", "?")) else f"{text}."
