"""Converting many files to LoRA or LyCORIS: what `to_lora` does to one, for `hnloader.conversion.bulk`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hnloader.conversion.lora.base import BaseModel
from hnloader.conversion.lora.converting import (
    BiasPlace,
    Rank,
    check_family,
    prompt_list,
    settings_of,
    stated,
    to_lora,
)
from hnloader.conversion.lora.names import NameStyle
from hnloader.conversion.lora.result import Kind, LoraExport
from hnloader.conversion.lora.statistics import Progress, Sampling
from hnloader.conversion.lora.writing import name_style, tensors_sha256
from hnloader.errors import HypernetworkError
from hnloader.inspection import inspect

# What a file states about how it was made; see `converting.stated`.
_STATED = ("hnloader.kind", "hnloader.sources", "hnloader.base", "hnloader.settings")


@dataclass(frozen=True)
class ToLora:
    """Writes a LoRA or LyCORIS file of each hypernetwork; the settings are those of `to_lora`.

    One after the other, whatever the number of threads: all of them run the same model.
    """

    base: BaseModel
    kind: Kind = "lora"
    strength: float = 1.0
    rank: Rank = "auto"
    fidelity: float = 0.95
    prompts: Path | None = None
    images: int = 10
    steps: int = 8
    seed: int = 0
    guidance: float = 5.0
    dtype: torch.dtype = torch.float32
    names: NameStyle | None = None
    bias: BiasPlace = "output"
    compare_to: Path | None = None
    overwrite: bool = True
    progress: Progress = lambda done, total, text: None
    note: Callable[[str], None] = lambda text: None
    exports: dict[Path, LoraExport] = field(default_factory=dict, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)

    @property
    def suffix(self) -> str:
        """How targets end: a LoRA beside a converted hypernetwork has another name."""
        return f"-{self.kind}.safetensors"

    def keeping(self) -> ToLora:
        """Return one that replaces nothing."""
        return replace(self, overwrite=False)

    def is_free(self, source: Path, target: Path) -> bool:
        """Return whether the target does not exist."""
        return not os.path.lexists(target)

    def convert(self, source: Path, target: Path) -> Mapping[str, object]:
        """See `to_lora`; what it returns is kept in `exports` by target."""
        return self.convert_chain([(source, self.strength)], target)

    def convert_chain(self, sources: list[tuple[Path, float]], target: Path) -> Mapping[str, object]:
        """One file of several hypernetworks after each other, each with its strength."""
        with self._lock:
            done = to_lora(
                list(sources),
                self.base,
                target,
                kind=self.kind,
                rank=self.rank,
                fidelity=self.fidelity,
                prompts=self.prompts,
                images=self.images,
                steps=self.steps,
                seed=self.seed,
                guidance=self.guidance,
                dtype=self.dtype,
                names=self.names or "auto",
                bias=self.bias,
                compare_to=self.compare_to,
                overwrite=self.overwrite,
                note=self.note,
                progress=self.progress,
            )
            self.exports[target] = done
        return {
            "kind": done.kind,
            "base": done.base,
            "exact": done.exact,
            "fidelity": round(done.fidelity, 6),
            "ranks": dict(done.ranks),
            "errors": done.errors.to_json(),
            "statistics": done.statistics,
            "warnings": list(done.warnings),
            "images": dict(done.images or {}),
        }

    def look(self, source: Path) -> None:
        """Read the header and compare the widths with the model's."""
        info = inspect(source)
        check_family(info, self.base, lambda text: None)

    def made(self, source: Path, target: Path) -> bool:
        """Whether the target is whole and states this source, model and settings."""
        try:
            self.check(source, target)
        except HypernetworkError:
            return False
        return True

    def came_from(self, file: Path, source: Path) -> bool:
        """A hypernetwork is never made from a LoRA."""
        return False

    def check(self, source: Path, target: Path) -> Mapping[str, object]:
        """Verify that the target is whole, and that it states this source, model and settings.

        Raises:
            HypernetworkError: It is damaged, or states others.
        """
        metadata, digest = _read(target)
        if metadata.get("sshs_model_hash") != digest:
            raise HypernetworkError(f"{target} is damaged: its tensors are not those that were written.")
        info = inspect(source)
        expected = self._stated(info.name, info.sha256)
        for key in _STATED:
            if metadata.get(key) != expected[key]:
                what = key.partition(".")[2]
                raise HypernetworkError(f"{target} states another {what} than {source} with these settings has.")
        return {"verified": ["tensors", "source", "settings"]}

    def _stated(self, name: str, sha256: str) -> dict[str, str]:
        sampling = Sampling(prompt_list(self.prompts, self.base), self.images, self.steps, self.seed, self.guidance)
        style = self.names or name_style(self.base.family)
        settings = settings_of(self.kind, self.rank, self.fidelity, sampling, self.dtype, style, self.bias)
        sources = [{"name": name, "strength": self.strength, "sha256": sha256}]
        return stated(sources, self.base, self.kind, settings)


def _read(path: Path) -> tuple[dict[str, str], str]:
    """The metadata, and the sha256 of the tensors."""
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            return opened.metadata() or {}, tensors_sha256(tensors)
    except (OSError, SafetensorError) as error:
        raise HypernetworkError(f"{path} is no sound safetensors file: {error}") from error
