"""Pasted generation parameters: tags for images of 2022, and a warning if a file differs from the image's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hnloader.errors import HypernetworkError, PromptTagError
from hnloader.hashes import LEGACY_DIGITS
from hnloader.infotext import HASHES, OLD_HASH, OLD_NAME, OLD_STRENGTH, listed_hashes, without_hash
from hnloader.prompt import Tag
from hnloader.texts import shown

from .core import Extension
from .host_library import HostLibrary
from .hosts.protocol import WritesInfotext, show_message


def register(extension: Extension, host: WritesInfotext) -> None:
    """Read every pasted infotext."""
    host.on_paste(lambda fields: pasted(extension, fields))


def pasted(extension: Extension, fields: dict[str, Any]) -> None:
    """Replace the tag of an old image by one that finds its file, and report files that differ from the image's.

    For `Hypernet` and `Hypernet strength` most webuis have put `<hypernet:NAME:STRENGTH>` at the end of the prompt.
    """
    library = extension.library
    old = fields.get(OLD_NAME)
    if isinstance(old, str):
        strength = str(fields.get(OLD_STRENGTH, "1.0"))
        name = _old_name(library, old, str(fields.get(OLD_HASH, "")))
        fields["Prompt"] = _with_tag(str(fields.get("Prompt", "")), old, name, strength)
    for name, digest in _hashes_in(library, fields):
        difference = _difference(library, name, digest)
        if difference:
            show_message(extension.host, difference)


def _old_name(library: HostLibrary, old: str, digest: str) -> str:
    """Return the library's name for the hypernetwork of an old image; the file with its hash wins."""
    name, own_digest = without_hash(old)
    found = library.find_by_hash(name, own_digest or digest)
    return name if found is None else library.current.shortest_name(found)


def _with_tag(prompt: str, old: str, name: str, strength: str) -> str:
    """Replace the webui's tag by one that reads as the image meant it; add that one where there is none."""
    webui_tag = f"<hypernet:{old}:{strength}>"
    try:
        tag = str(Tag(name, float(strength)))
    except (PromptTagError, ValueError):
        return prompt
    return prompt.removesuffix(webui_tag) + tag


def _hashes_in(library: HostLibrary, fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield from listed_hashes(str(fields.get(HASHES, "")))
    if isinstance(old := fields.get(OLD_NAME), str):
        digest = without_hash(old)[1] or str(fields.get(OLD_HASH, ""))
        yield _old_name(library, old, digest), digest


def _difference(library: HostLibrary, name: str, digest: str) -> str:
    """Return a message if the file with this name has another hash, else ""."""
    if not digest:
        return ""
    try:
        path = library.find(name).path
        hashes = library.hashes
        here = hashes.legacy(path) if len(digest) == LEGACY_DIGITS else hashes.sha256(path)[: len(digest)]
    except (HypernetworkError, OSError):
        return ""  # a job reports a missing file
    if here == digest:
        return ""
    return f"Hypernetwork {shown(name)}: your file ({here}) differs from the one the image was made with ({digest})."
