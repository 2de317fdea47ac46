"""Write text with a language model and hypernetworks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hnloader.errors import ModelError, SettingsError
from hnloader.language_models import LanguageModel
from hnloader.pipelines import model_errors, quiet

__all__ = ["WritingSettings", "chat_prompt", "write_text"]

# Of the probability, the most likely tokens with this share may be drawn.
_TOP_P = 0.95


@dataclass(frozen=True)
class WritingSettings:
    """The length of a text, and the choice of its tokens.

    Args:
        max_tokens: The most tokens to write.
        temperature: Divides the logits: low values give likely words. 0 always takes the most likely token.
        seed: Seed of the random numbers.
    """

    max_tokens: int = 100
    temperature: float = 0.8
    seed: int = 1


def write_text(
    language: LanguageModel,
    prompt: str,
    settings: WritingSettings,
    on_text: Callable[[str], None] = lambda text: None,
) -> str:
    """Continue a prompt.

    Args:
        language: The model, with hypernetworks attached or without.
        prompt: The text to continue.
        settings: The length, and the choice of tokens.
        on_text: Called with each finished part of the text.

    Returns:
        The text after the prompt.

    Raises:
        SettingsError: The prompt fills all positions of the model.
        ModelError: The model computes values that are not finite, as at a very large strength.
    """
    tokenizer, device = language.tokenizer, language.device
    with quiet():
        ids = prompt_tokens(tokenizer, prompt)
    room = settings.max_tokens if language.positions is None else language.positions - len(ids)
    if room <= 0:
        raise SettingsError(
            f"The prompt has {len(ids):,} tokens, and the model reads {language.positions:,}. Shorten the prompt."
        )
    given = torch.tensor([ids], device=device)
    drawn = {"do_sample": True, "temperature": settings.temperature, "top_p": _TOP_P, "top_k": 0}
    written = _Written(tokenizer, on_text)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad(), quiet():
        torch.manual_seed(settings.seed)
        language.model.generate(
            given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=min(settings.max_tokens, room),
            pad_token_id=_padding(tokenizer),
            streamer=written,
            logits_processor=[_Finite(language.name)],
            **(drawn if settings.temperature else {"do_sample": False}),
        )
    return written.text


class _Finite:
    """A processor of logits of transformers that refuses logits without a likely token."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits [rows, tokens]. Some can be minus infinity."""
        if not scores.amax(-1).isfinite().all():  # amax passes on NaN
            raise ModelError(
                f"{self._name}: the logits are not finite. Use smaller strengths, or float32 instead of float16."
            )
        return scores


class _Written:
    """A streamer of transformers: it passes on text as soon as no later token can change it.

    Tokens are decoded together with the prompt, because tokenizers drop the space before a first word.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        self._tokenizer, self._on_text = tokenizer, on_text
        self._tokens: list[int] = []
        self._prompt: int | None = None
        self.text = ""

    def put(self, tokens: Tensor) -> None:
        """Take the prompt, then each token."""
        self._tokens += tokens.flatten().tolist()
        if self._prompt is None:
            self._prompt = len(self._decoded())
            return
        # A character can be several tokens.
        if not self._decoded().endswith("\N{REPLACEMENT CHARACTER}"):
            self._pass_on()

    def end(self) -> None:
        """Pass on the rest."""
        self._pass_on()

    def _pass_on(self) -> None:
        new = self._decoded()[self._prompt :][len(self.text) :]
        if new:
            self.text += new
            self._on_text(new)

    def _decoded(self) -> str:
        text: str = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        return text


def chat_prompt(language: LanguageModel, message: str) -> str:
    """Return a message to a chat model as its tokenizer's template writes it, up to the start of the answer.

    Raises:
        ModelError: The tokenizer has no chat template.
    """
    if not getattr(language.tokenizer, "chat_template", None):
        raise ModelError(f"{language.name}: the tokenizer has no chat template. Write without --chat.")
    given = [{"role": "user", "content": message}]
    with model_errors(language.name):
        text: str = language.tokenizer.apply_chat_template(given, tokenize=False, add_generation_prompt=True)
    return text


def prompt_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """Return the tokens of a text that the model continues: with a token at the start, without one at the end."""
    # A chat template can contain the token at the start.
    begun = bool(tokenizer.bos_token) and prompt.startswith(tokenizer.bos_token)
    ids: list[int] = tokenizer(prompt, add_special_tokens=not begun)["input_ids"]
    while ids and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    if ids:
        return ids
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return [first or 0]


def _padding(tokenizer: Any) -> int:
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return int(padding or 0)
