"""Compare ways to teach the bundled language model a style: `python -m lab.demo.stories.methods --work FOLDER`.

The methods are a hypernetwork, a LoRA of keys and values, a LoRA of all linear layers, and prompt tuning. All have
about the same number of trained values. They train on the same stories, through the same loop, for as many steps.
Each method takes the learning rate of three with the lowest validation loss, with which it trains from three seeds.

The model with a trained method then continues validation openings. Drift is the mean Kullback-Leibler divergence of its
next tokens from those of the plain model, on plain stories. All files are kept, and the same command resumes.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnloader.demo import language_model_folder
from hnloader.language_models import LanguageModel
from hnloader.pipelines import quiet
from hnloader.training.adapters import Adapter, NamedModel
from hnloader.training.config import Config, read_config
from hnloader.training.decoder_lora_adapter import decoder_target_names
from hnloader.training.text_dataset import TextDataset, read_texts
from hnloader.training.text_task import TextTask
from hnloader.training.trainer import Trainer
from lab.demo.stories import styles
from lab.demo.stories.continuations import measure, openings
from lab.demo.stories.story_checker import SHOWN
from lab.demo.stories.styles import bundled_model, write_texts
from lab.demo.stories.writer import stories

if TYPE_CHECKING:
    from peft import PeftModel

# Few enough values for the prompt of as many to fit into the context of the model, and no dropout.
SETTINGS: dict[str, object] = {
    **styles.SETTINGS,
    "hypernetwork.layer_structure": [1, 0.071, 1],
    "hypernetwork.dropout": 0,
    "steps": 150,
}
# Learning rates to choose from.
RATES = {
    "hypernetwork": (1e-3, 3e-3, 1e-2),
    "K/V LoRA": (1e-3, 3e-3, 1e-2),
    "all-linear LoRA": (1e-3, 3e-3, 1e-2),
    "prompt tuning": (1e-2, 3e-2, 1e-1),
}
TARGETS = {"K/V LoRA": "kv", "all-linear LoRA": "all"}
SEEDS = (0, 1, 2)
_VALIDATION_SEED = 99
_VALIDATION_STORIES = 50


class PromptModel(nn.Module):
    """A model of peft's prompt tuning, with logits of the given tokens only."""

    def __init__(self, model: PeftModel, tokens: int) -> None:
        super().__init__()
        self.peft, self.tokens = model, tokens

    def forward(self, input_ids: Tensor, **others: Any) -> Any:
        """Return the output of the model without the logits of the trained tokens."""
        output = self.peft(input_ids=input_ids, **others)
        output.logits = output.logits[:, self.tokens :]
        return output

    def generate(self, **given: Any) -> Tensor:
        """Return what peft's model generates."""
        with warnings.catch_warnings():
            # peft drops the positions; without padding, the model counts the same ones.
            warnings.filterwarnings("ignore", "Position ids are not supported", UserWarning)
            written: Tensor = self.peft.generate(**given)
        return written


class PromptAdapter(Adapter):
    """Trained tokens before the text."""

    previous_steps = 0

    def __init__(self, model: PromptModel) -> None:
        self.model = model
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def enabled(self, *, training: bool) -> contextlib.AbstractContextManager[object]:
        """See `Adapter`; the tokens are always there."""
        return contextlib.nullcontext()

    def save(self, path: Path, step: int, model: NamedModel) -> None:
        """See `Adapter`."""
        self.model.peft.save_pretrained(path)


class PromptTask(TextTask):
    """Texts, and a language model with peft's prompt tuning."""

    def __init__(self, config: Config, language: LanguageModel, dataset: TextDataset, tokens: int) -> None:
        from peft import PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model

        super().__init__(config, language, dataset)
        torch.manual_seed(config.seed)
        settings = PromptTuningConfig(
            task_type=TaskType.CAUSAL_LM,
            num_virtual_tokens=tokens,
            prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB,
        )
        with quiet():
            prompted = PromptModel(get_peft_model(language.model, settings), tokens)
        self.language = dataclasses.replace(language, model=prompted)
        self.adapter = PromptAdapter(prompted)


@dataclass(frozen=True)
class Run:
    """One trained method.

    Attributes:
        validation_loss: On stories in the style that it did not train on.
        shown: Share of continuations that show the style.
        grammatical: Share of continuations that are grammatical.
        drift: Mean Kullback-Leibler divergence on plain stories, in nats for each token.
        speed: Tokens written in a second of processor time.
        seconds: Processor time of the training.
        parameters: Number of trained values.
        size: Bytes of the file or folder.
    """

    method: str
    rate: float
    seed: int
    validation_loss: float
    shown: float
    grammatical: float
    drift: float
    speed: float
    seconds: float
    parameters: int
    size: int


def prepare_method(method: str, style: str, work: Path, rate: float, seed: int) -> Trainer:
    """Return the training run of a method, with about as many trained values as the hypernetwork."""
    language = bundled_model()
    name = f"{style}-{method.replace(' ', '-').replace('/', '')}-{rate:g}-{seed}"
    given: dict[str, object] = {
        **SETTINGS,
        "model": str(language_model_folder()),
        "texts": str(write_texts(style, work)),
        "output": str(work / f"{name}.safetensors"),
        "learning_rate": rate,
        "seed": seed,
    }
    dataset = read_texts(work / "texts" / f"{style}.txt", read_config(None, given).text)
    task = TextTask(read_config(None, given), language, dataset)
    values = sum(parameter.numel() for parameter in task.adapter.parameters)
    if method in TARGETS:
        layers = [language.model.get_submodule(name) for name in decoder_target_names(language.model, TARGETS[method])]
        rank = round(values / sum(sum(layer.weight.shape) for layer in layers))
        given |= {"method": "lora", "lora.targets": TARGETS[method], "lora.rank": rank, "lora.alpha": rank}
        task = TextTask(read_config(None, {**given, "output": str(work / name)}), language, dataset)
    elif method == "prompt tuning":
        tokens = round(values / language.model.config.hidden_size)
        task = PromptTask(read_config(None, given), language, dataset, tokens)
    return Trainer(task)


def run_method(method: str, style: str, work: Path, rate: float, seed: int, prompts: int) -> Run:
    """Train and evaluate a method."""
    trainer = prepare_method(method, style, work, rate, seed)
    task = trainer.task
    assert isinstance(task, TextTask)
    began = time.process_time()
    trainer.run()
    seconds = time.process_time() - began
    plain = bundled_model()
    with task.adapter.enabled(training=False), torch.no_grad():
        loss = loss_on(task.language, style)
        drift = divergence(plain, task.language)
        shares, _ = measure(task.language, style, count=prompts, seed=1)
        speed = tokens_per_second(task.language)
    return Run(
        method,
        rate,
        seed,
        loss,
        shares.shown,
        shares.grammatical,
        drift,
        speed,
        seconds,
        sum(parameter.numel() for parameter in task.adapter.parameters),
        sum(file.stat().st_size for file in _files(trainer.output)),
    )


@torch.no_grad()
def loss_on(language: LanguageModel, style: str) -> float:
    """Return the mean loss of a model on validation stories of a style."""
    ids, given = _validation_tokens(language, style)
    logits = language.model(input_ids=ids).logits[:, :-1]
    return float(functional.cross_entropy(logits[given], ids[:, 1:][given]))


@torch.no_grad()
def divergence(plain: LanguageModel, trained: LanguageModel) -> float:
    """Return the mean divergence of a model's next tokens from those of the plain one, on plain stories."""
    ids, given = _validation_tokens(plain, "plain")
    expected, found = (
        functional.log_softmax(language.model(input_ids=ids).logits[:, :-1][given], -1) for language in (plain, trained)
    )
    return float(functional.kl_div(found, expected, log_target=True, reduction="batchmean"))


def tokens_per_second(language: LanguageModel, count: int = 8, length: int = 60) -> float:
    """Return the number of tokens that a model writes in a second of processor time, in one batch."""
    given = language.tokenizer([story.opening for story in openings(count)], return_tensors="pt", padding=True)
    began = time.process_time()
    language.model.generate(
        input_ids=given["input_ids"],
        attention_mask=given["attention_mask"],
        min_new_tokens=length,
        max_new_tokens=length,
        do_sample=False,
    )
    return count * length / (time.process_time() - began)


def _validation_tokens(language: LanguageModel, style: str) -> tuple[Tensor, Tensor]:
    """Return the tokens of stories, padded at the end, and the places whose next token belongs to a story."""
    end = language.tokenizer.eos_token_id
    written = stories(style, _VALIDATION_STORIES, _VALIDATION_SEED, validation=True)
    rows = [torch.tensor([*language.tokenizer(str(story))["input_ids"], end]) for story in written]
    places = [torch.ones(len(row) - 1, dtype=torch.bool) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(rows, batch_first=True), pad(places, batch_first=True)


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def run_all(style: str, work: Path, prompts: int) -> Iterator[Run]:
    """Yield the runs of each method: of all learning rates with the first seed, then of the best with the others."""
    for method, rates in RATES.items():
        tried = [_kept(method, style, work, rate, SEEDS[0], prompts) for rate in rates]
        best = min(tried, key=lambda run: run.validation_loss)
        yield best
        for seed in SEEDS[1:]:
            yield _kept(method, style, work, best.rate, seed, prompts)


def _kept(method: str, style: str, work: Path, rate: float, seed: int, prompts: int) -> Run:
    """Return a run, from its file if it was finished before."""
    path = work / f"{style} {method.replace('/', '')} {rate:g} {seed} {prompts}.json"
    if not path.is_file():
        run = run_method(method, style, work, rate, seed, prompts)
        path.write_text(json.dumps(dataclasses.asdict(run)), encoding="utf-8")
    return Run(**json.loads(path.read_text(encoding="utf-8")))


def table(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the lines of a table with the mean of each method, and the range of its seeds."""
    yield (
        "| method | values | rate | validation loss | style shown | grammatical | drift | tokens/s | training | size |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]

        def spread(name: str, form: str, own: Sequence[Run] = own) -> str:
            values = [getattr(run, name) for run in own]
            return f"{statistics.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"

        cells = (
            method,
            f"{own[0].parameters:,}",
            f"{own[0].rate:g}",
            spread("validation_loss", ".3f"),
            spread("shown", ".1%"),
            spread("grammatical", ".1%"),
            spread("drift", ".3f"),
            f"{statistics.mean(run.speed for run in own):,.0f}",
            f"{statistics.mean(run.seconds for run in own):.0f} s",
            f"{own[0].size / 1000:.0f} kB",
        )
        yield f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.demo.stories.methods",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--work", type=Path, default=Path("methods"), help="folder of the files")
    parser.add_argument("--styles", nargs="+", choices=tuple(SHOWN), default=("past",))
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    chosen.work.mkdir(parents=True, exist_ok=True)
    for style in chosen.styles:
        runs = list(run_all(style, chosen.work, chosen.prompts))
        print(f"\n{style}\n", *table(runs), sep="\n", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
