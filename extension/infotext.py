"""The parameters that are written into images, and what is made of them when they are pasted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hnloader.errors import HypernetworkError, PromptTagError
from hnloader.files import sha256_of
from hnloader.hashes import LEGACY_DIGITS
from hnloader.infotext import HASHES, NOT_APPLIED, OLD_HASH, OLD_NAME, OLD_STRENGTH, listed_hashes, without_hash
from hnloader.prompt import Tag
from hnloader.texts import shown, well_formed

if TYPE_CHECKING:
    from .runtime import Extension

_DIGITS = 10
_RECORD = "hnloader_record"


@dataclass
class Record:
    """What the images of one batch say of themselves: what was applied, and what was asked for in vain.

    A hypernetwork can be both: in the first pass and not in the second one, whose model it does not fit.
    """

    applied: dict[str, str] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)

    def add(self, applied: Iterable[tuple[str, str]], missing: Iterable[str]) -> None:
        """Take in names with the digests of their files, and names."""
        self.applied.update(applied)
        self.missing.update(filter(None, missing))

    def write(self, parameters: dict[str, Any]) -> None:
        """Put it among the parameters of an image."""
        for key, value in (
            (HASHES, ", ".join(f"{name}: {digest}" for name, digest in self.applied.items())),
            (NOT_APPLIED, ", ".join(sorted(self.missing))),
        ):
            if value:
                parameters[key] = well_formed(value)
            else:
                parameters.pop(key, None)


def record_of(processing: Any, *, anew: bool = False) -> Record:
    """The record of the batch that a job is at; the host's object for the job keeps it."""
    record = getattr(processing, _RECORD, None)
    if anew or record is None:
        record = Record()
        setattr(processing, _RECORD, record)
    return record


def digest_of(path: str | Path) -> str:
    """The first digits of a file's sha256, as the webuis show them."""
    return sha256_of(path)[:_DIGITS]


# -- pasting


def register(extension: Extension) -> None:
    """Look at every text that is pasted."""
    from modules import script_callbacks

    script_callbacks.on_infotext_pasted(lambda text, fields: pasted(extension, fields))


def pasted(extension: Extension, fields: dict[str, Any]) -> None:
    """Make an old image's hypernetwork a tag that finds its file, and say which files are others than the image's.

    The host has put `<hypernet:NAME:STRENGTH>` at the end of the prompt for `Hypernet` and `Hypernet strength`.
    """
    old = fields.get(OLD_NAME)
    if isinstance(old, str):
        strength = str(fields.get(OLD_STRENGTH, "1.0"))
        name = _old_name(extension, old, str(fields.get(OLD_HASH, "")))
        fields["Prompt"] = _with_tag(str(fields.get("Prompt", "")), old, name, strength)
    for name, digest in _hashes_in(extension, fields):
        problem = _difference(extension, name, digest)
        if problem:
            extension.host.notify(problem)


def _old_name(extension: Extension, old: str, given: str) -> str:
    """Return this library's name of an old image's hypernetwork: the file with its hash is the one."""
    name, digest = without_hash(old)
    found = extension.file_of_hash(name, digest or given)
    return name if found is None else extension.library.shortest_name(found)


def _with_tag(prompt: str, old: str, name: str, strength: str) -> str:
    """The prompt with a tag that is read as the image meant it in the place of the host's."""
    as_host = f"<hypernet:{old}:{strength}>"
    if not prompt.endswith(as_host):
        return prompt
    try:
        tag = str(Tag(name, float(strength)))
    except (PromptTagError, ValueError):
        return prompt
    return prompt.removesuffix(as_host) + tag


def _hashes_in(extension: Extension, fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield from listed_hashes(str(fields.get(HASHES, "")))
    if isinstance(old := fields.get(OLD_NAME), str):
        digest = without_hash(old)[1] or str(fields.get(OLD_HASH, ""))
        yield _old_name(extension, old, digest), digest


def _difference(extension: Extension, name: str, digest: str) -> str:
    """What is to be said of an image's hypernetwork and the file of its name here, "" where they are the same."""
    if not digest:
        return ""
    try:
        path = Path(extension.find(name))
        hashes = extension.hashes
        here = hashes.legacy(path) if len(digest) == LEGACY_DIGITS else hashes.sha256(path)[: len(digest)]
    except (HypernetworkError, OSError):
        return ""  # the image will say so when it is made
    if here == digest:
        return ""
    return f"Hypernetwork {shown(name)} is another file here ({here}) than in the image ({digest})."
