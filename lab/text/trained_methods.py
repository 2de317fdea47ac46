"""Train a language model with a hypernetwork, LoRAs or prompt tuning, of about as many values, and compare them.

`lab.demo.stories.methods` compares them on the bundled model, and `lab.text.compare_methods` on SmolLM2.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from hnloader.language_models import LanguageModel
from hnloader.pipelines import quiet
from hnloader.training.adapters import Adapter, NamedModel
from hnloader.training.config import Config, read_config
from hnloader.training.decoder_lora_adapter import decoder_target_names
from hnloader.training.text_dataset import TextDataset, read_texts
from hnloader.training.text_task import TextTask
from hnloader.training.trainer import Trainer
from hnloader.writing import WritingSettings

if TYPE_CHECKING:
    from peft import PeftModel

# Learning rates to choose from.
RATES = {
    "hypernetwork": (1e-3, 3e-3, 1e-2),
    "K/V LoRA": (1e-3, 3e-3, 1e-2),
    "all-linear LoRA": (1e-3, 3e-3, 1e-2),
    "prompt tuning": (1e-2, 3e-2, 1e-1),
}
TARGETS = {"K/V LoRA": "kv", "all-linear LoRA": "all"}
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class TrainedMethod:
    """Numbers of one trained method.

    Attributes:
        validation_loss: On texts in the style that it did not train on.
        drift: Mean Kullback-Leibler divergence on other texts, in nats for each token.
        speed: Tokens written in a second of processor time.
        seconds: Processor time of the training.
        parameters: Number of trained values.
        size: Bytes of the file or folder.
    """

    method: str
    rate: float
    seed: int
    validation_loss: float
    drift: float
    speed: float
    seconds: float
    parameters: int
    size: int


Result = TypeVar("Result", bound=TrainedMethod)


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


def trainer_for(
    method: str, given: Mapping[str, object], language: LanguageModel, longest_prompt: int = 1000
) -> Trainer:
    """Return the training run of a method, with about as many trained values as the hypernetwork of the settings.

    Args:
        method: One of `RATES`.
        given: The settings of the hypernetwork.
        language: The model. A LoRA and prompt tuning change it.
        longest_prompt: The most tokens of prompt tuning.
    """
    config = read_config(None, dict(given))
    dataset = read_texts(Path(config.texts), config.text)
    task = TextTask(config, language, dataset)
    values = sum(parameter.numel() for parameter in task.adapter.parameters)
    if method in TARGETS:
        layers = [language.model.get_submodule(name) for name in decoder_target_names(language.model, TARGETS[method])]
        rank = max(1, round(values / sum(sum(layer.weight.shape) for layer in layers)))
        lora = {"method": "lora", "lora.targets": TARGETS[method], "lora.rank": rank, "lora.alpha": rank}
        output = str(Path(config.output).with_suffix(""))
        task = TextTask(read_config(None, {**given, **lora, "output": output}), language, dataset)
    elif method == "prompt tuning":
        tokens = min(round(values / language.model.config.hidden_size), longest_prompt)
        task = PromptTask(config, language, dataset, tokens)
    return Trainer(task)


def train(trainer: Trainer) -> float:
    """Run a training run to its end; return the processor time.

    Raises:
        KeyboardInterrupt: It was interrupted.
    """
    began = time.process_time()
    if trainer.run().reason == "interrupted":
        raise KeyboardInterrupt
    return time.process_time() - began


class Tokens(NamedTuple):
    """Texts as a model reads them, [texts, length], padded at the end.

    Attributes:
        ids: The tokens.
        given: [texts, length - 1], the places whose next token belongs to a text.
    """

    ids: Tensor
    given: Tensor


def tokens_of(language: LanguageModel, texts: Iterable[str]) -> Tokens:
    """Return the tokens of texts, each with an end."""
    end = language.tokenizer.eos_token_id
    rows = [torch.tensor([*language.tokenizer(text)["input_ids"], end]) for text in texts]
    places = [torch.ones(len(row) - 1, dtype=torch.bool) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    return Tokens(pad(rows, batch_first=True), pad(places, batch_first=True))


@torch.no_grad()
def mean_loss(language: LanguageModel, tokens: Tokens) -> float:
    """Return the mean loss of a model on texts."""
    logits = language.model(input_ids=tokens.ids).logits[:, :-1]
    return float(functional.cross_entropy(logits[tokens.given], tokens.ids[:, 1:][tokens.given]))


@torch.no_grad()
def divergence(plain: LanguageModel, trained: LanguageModel, tokens: Tokens) -> float:
    """Return the mean Kullback-Leibler divergence of a model's next tokens from those of the plain one."""
    expected, found = (
        functional.log_softmax(language.model(input_ids=tokens.ids).logits[:, :-1][tokens.given], -1)
        for language in (plain, trained)
    )
    return float(functional.kl_div(found, expected, log_target=True, reduction="batchmean"))


def tokens_per_second(language: LanguageModel, prompts: Sequence[str], length: int) -> float:
    """Return the number of tokens that a model writes in a second of processor time, in one batch."""
    _, speed = _written(language, prompts, length, do_sample=False)
    return speed


def continued(language: LanguageModel, prompts: Sequence[str], copies: int, length: int) -> tuple[list[str], float]:
    """Return sampled continuations, and the tokens written in a second of processor time, in one batch.

    Args:
        language: The model.
        prompts: The beginnings.
        copies: Number of continuations of each.
        length: Tokens of each.
    """
    torch.manual_seed(1)
    sampling = {"do_sample": True, "temperature": WritingSettings().temperature}
    written, speed = _written(language, list(prompts) * copies, length, **sampling)
    return language.tokenizer.batch_decode(written, skip_special_tokens=True), speed


@torch.no_grad()
def _written(language: LanguageModel, prompts: Sequence[str], length: int, **sampling: Any) -> tuple[Tensor, float]:
    """Return the tokens after each prompt, [prompts, length], and their number in a second of processor time."""
    given = language.tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    began = time.process_time()
    with quiet():
        written = language.model.generate(
            input_ids=given["input_ids"],
            attention_mask=given["attention_mask"],
            min_new_tokens=length,
            max_new_tokens=length,
            **sampling,
        )[:, -length:]
    return written, written.numel() / (time.process_time() - began)


def size_of(path: Path) -> int:
    """Return the bytes of a file or folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def best_runs(
    run: Callable[[str, float, int], Result],
    rates: Mapping[str, Sequence[float]] = RATES,
    seeds: Sequence[int] = SEEDS,
) -> list[Result]:
    """Return the runs of each method with its best learning rate, from all seeds.

    Args:
        run: Trains a method with a learning rate and a seed.
        rates: The learning rates of each method.
        seeds: All learning rates are tried with the first.
    """
    best: dict[str, tuple[float, Result]] = {}
    for method in rates:
        tried = [(rate, run(method, rate, seeds[0])) for rate in rates[method]]
        best[method] = min(tried, key=lambda pair: pair[1].validation_loss)
    others = {(method, seed): run(method, best[method][0], seed) for seed in seeds[1:] for method in rates}
    return [each for method in rates for each in (best[method][1], *(others[method, seed] for seed in seeds[1:]))]


def kept(path: Path, kind: type[Result], run: Callable[[], Result]) -> Result:
    """Return a result, from its file if it was finished before."""
    if not path.is_file():
        path.write_text(json.dumps(dataclasses.asdict(run())), encoding="utf-8")
    return kind(**json.loads(path.read_text(encoding="utf-8")))


def table(runs: Sequence[TrainedMethod], columns: Mapping[str, tuple[str, str]]) -> Iterator[str]:
    """Yield the lines of a table with the mean of each method, and the range of its seeds.

    Args:
        runs: The runs.
        columns: By the title of a column, the attribute of the runs and its format.
    """
    titles = ("method", "values", "rate", *columns, "tokens/s", "training", "size")
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for method in dict.fromkeys(run.method for run in runs):
        own = [run for run in runs if run.method == method]
        spreads = []
        for name, form in columns.values():
            values = [getattr(run, name) for run in own]
            spreads.append(f"{statistics.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})")
        cells = (
            method,
            f"{own[0].parameters:,}",
            f"{own[0].rate:g}",
            *spreads,
            f"{statistics.mean(run.speed for run in own):,.0f}",
            f"{statistics.mean(run.seconds for run in own):.0f} s",
            f"{own[0].size / 1000:.0f} kB",
        )
        yield f"| {' | '.join(cells)} |"
