"""Export many hypernetworks as LoRA or LyCORIS files, as a converter for `hnloader.conversion.bulk`."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hnloader.conversion.lora import lora_file
from hnloader.conversion.lora.base_model import BaseModel
from hnloader.conversion.lora.context_samples import Progress
from hnloader.conversion.lora.export import export_lora, source_metadata
from hnloader.conversion.lora.lora_options import LoraOptions
from hnloader.conversion.lora.lora_sources import Item, check_family
from hnloader.errors import HypernetworkError
from hnloader.inspection import inspect

__all__ = ["LoraExporter"]


@dataclass(frozen=True)
class LoraExporter:
    """Write a LoRA or LyCORIS file of each hypernetwork, one after the other: all of them run the same model.

    Attributes:
        base: The opened model.
        options: Settings.
        grid: A `.png` for images, for a single file. Default: None.
        progress: Called with `(done, total, step)`. Default: show nothing.
        note: Receives remarks. Default: drop them.
    """

    base: BaseModel
    options: LoraOptions = field(default_factory=LoraOptions)
    grid: Path | None = None
    progress: Progress = lambda done, total, text: None
    note: Callable[[str], None] = lambda text: None
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    def convert(self, source: Path, target: Path, *, overwrite: bool = True) -> Mapping[str, object]:
        """Export one hypernetwork. Returns facts for a report."""
        return self.export([source], target, overwrite=overwrite)

    def export(self, sources: list[Item], target: Path, *, overwrite: bool = True) -> Mapping[str, object]:
        """Export a chain of hypernetworks as one file. Returns facts for a report."""
        with self._lock:
            done = export_lora(
                sources,
                self.base,
                target,
                self.options,
                grid=self.grid,
                overwrite=overwrite,
                note=self.note,
                progress=self.progress,
            )
        return {
            "kind": done.kind,
            "base": done.base,
            "exact": done.exact,
            "fidelity": round(done.fidelity, 6),
            "ranks": dict(done.ranks),
            "errors": done.errors.to_json(),
            "statistics": done.statistics,
            "warnings": list(done.warnings),
            "images": dict(done.image_differences or {}),
            "refinement": None if done.refinement is None else dataclasses.asdict(done.refinement),
        }

    def check_source(self, source: Path) -> None:
        """Read the header and compare the widths with those of the model. Raises HypernetworkError."""
        check_family(inspect(source), self.base, lambda text: None)

    def is_free(self, source: Path, target: Path) -> bool:
        """Return True if the target does not exist."""
        return not os.path.lexists(target)

    def is_current(self, source: Path, target: Path) -> bool:
        """Return True if the target is whole and states this source, model and settings."""
        try:
            self.verify(source, target)
        except HypernetworkError:
            return False
        return True

    def came_from(self, file: Path, source: Path) -> bool:
        """Return False: hypernetworks are never made from a LoRA."""
        return False

    def verify(self, source: Path, target: Path) -> Mapping[str, object]:
        """Verify that the target is whole, and that it states this source, model and settings.

        Raises:
            HypernetworkError: The target is damaged, or states something else.
        """
        metadata = lora_file.read(target)
        info = inspect(source)
        sources = [{"name": info.name, "strength": self.options.strength, "sha256": info.sha256}]
        for key, expected in source_metadata(sources, self.base, self.options).items():
            if metadata.get(key) != expected:
                raise HypernetworkError(
                    f"{target}: {key} differs from that of {source} with these settings. Export it again."
                )
        return {"verified": ["tensors", "source", "settings"]}
