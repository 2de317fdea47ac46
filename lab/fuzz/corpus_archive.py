"""The kept inputs of each target, in one archive with the same bytes for the same inputs."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip archive can hold


def read_corpus(target: str) -> dict[str, bytes]:
    """Return the kept inputs of a target by name; empty if the target has no archive."""
    path = CORPUS / f"{target}.zip"
    if not path.exists():
        return {}
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_corpus(target: str, inputs: Iterable[bytes]) -> None:
    """Replace the archive of a target. Duplicates collapse, and the order of the inputs is irrelevant."""
    named = {input_name(data): data for data in inputs}
    with zipfile.ZipFile(CORPUS / f"{target}.zip", "w") as archive:
        for name, data in sorted(named.items()):
            # Stored, not deflated: the bytes must not depend on the version of zlib.
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), data)


def unpack_corpus(target: str, folder: Path) -> None:
    """Write the kept inputs of a target as files, the form that libFuzzer reads."""
    for name, data in read_corpus(target).items():
        (folder / name).write_bytes(data)


def input_name(data: bytes) -> str:
    """Return the name of an input: the start of its SHA-256."""
    return sha256(data).hexdigest()[:16]
