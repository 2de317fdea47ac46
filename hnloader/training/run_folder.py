"""The folder of a training run and its lock."""

from __future__ import annotations

import contextlib
from pathlib import Path

from hnloader.files import file_lock


def run_folder(output: Path) -> Path:
    """Return the folder next to the output, for states, cache, previews and report."""
    return output.with_name(output.stem + ".training")


def locked(output: Path) -> contextlib.AbstractContextManager[None]:
    """Lock the output while this is active; HypernetworkError if another program is training it."""
    folder = run_folder(output)
    return file_lock(
        folder / "lock",
        f"{output}: another training run is writing this output (see {folder}). Wait for it, or choose another output.",
    )
