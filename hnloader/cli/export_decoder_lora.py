"""The part of `hnloader export-lora` for language models: a folder of peft in place of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from hnloader.cli.shared_options import refuse
from hnloader.cli.terminal import clean, note, progress_bar, stderr, stdout
from hnloader.units import size_text

if TYPE_CHECKING:
    from hnloader.conversion.lora.lora_options import LoraOptions

__all__ = ["export_for_decoder"]


def export_for_decoder(
    files: Sequence[Path],
    base: str,
    options: LoraOptions,
    out: Path | None,
    device: str,
    *,
    strengths: Sequence[float],
    overwrite: bool,
    unsuitable: Mapping[str, bool],
) -> None:
    """Export one hypernetwork, or a chain, for the language model `base`; `unsuitable` options exit with an error."""
    from hnloader.conversion.lora.decoder_export import export_decoder_lora
    from hnloader.language_models import load_language_model

    for option, given in unsuitable.items():
        if given:
            refuse(option, "Does not apply to language models.")
    for path in files:
        if not path.is_file():
            refuse("FILES", f"{path}: Expected a file. For a language model, name one file, or several with --chain.")
    target = out or files[0].with_name(f"{files[0].stem}-lora")
    with stderr().status("Loading the model ..."):
        language = load_language_model(base, device=device, dtype="float32")
    each = strengths if len(strengths) > 1 else [*strengths] * len(files)
    items = list(zip(files, each, strict=True))
    with progress_bar("Exporting") as show:
        made = export_decoder_lora(items, language, target, options, base=base, overwrite=overwrite, progress=show)
    stdout().print(Text(clean(target)), soft_wrap=True)
    rank = next(iter(made.ranks.values()))
    fidelity = "exact up to rounding" if made.exact else f"fidelity {made.fidelity:.3f}"
    facts = f"LoRA for {made.base}, rank {rank}, {size_text(made.size)}, {fidelity}"
    stderr().print(Text(clean(facts)), soft_wrap=True)
    for warning in made.warnings:
        note(warning)
