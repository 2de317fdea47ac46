"""Continue validation openings with a language model, and check what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hnloader.language_models import LanguageModel
from lab.demo.stories.story_checker import Verdict, check
from lab.demo.stories.writer import Story, is_tuning, stories

__all__ = ["TEMPERATURE", "Shares", "continue_stories", "measure", "openings"]

TEMPERATURE = 0.8
TOP_P = 0.95
_MOST_TOKENS = 150  # of a continuation; a story has about 65


@dataclass(frozen=True)
class Shares:
    """Shares (0 to 1) of continuations, or of all units in them."""

    grammatical: float
    shown: float
    same_hero: float
    grammatical_units: float
    shown_units: float

    @classmethod
    def of(cls, verdicts: list[Verdict]) -> Shares:
        """Return the shares of some verdicts."""

        def share(values: list[bool]) -> float:
            return sum(values) / len(values)

        return cls(
            grammatical=share([all(verdict.grammatical) for verdict in verdicts]),
            shown=share([all(verdict.shown) for verdict in verdicts]),
            same_hero=share([verdict.same_hero for verdict in verdicts]),
            grammatical_units=share([right for verdict in verdicts for right in verdict.grammatical]),
            shown_units=share([right for verdict in verdicts for right in verdict.shown]),
        )


def openings(count: int, seed: int = 0, *, tuning: bool = False) -> list[Story]:
    """Return stories with different openings whose heroes and topics no story for training combines.

    Args:
        count: Number of stories.
        seed: Seed of their words.
        tuning: Whether to take the openings for choosing settings, none of which is among the others.

    Returns:
        The stories.
    """
    found: dict[str, Story] = {}
    for story in stories("plain", count * 20, seed, validation=True):
        if len(found) == count:
            break
        if is_tuning(story.hero, story.topic) == tuning:
            found.setdefault(story.opening, story)
    return list(found.values())


@torch.no_grad()
def continue_stories(
    language: LanguageModel, prompts: Sequence[str], *, seed: int = 0, temperature: float = TEMPERATURE
) -> list[str]:
    """Sample the rest of stories in one batch; return the text after each prompt."""
    tokenizer = language.tokenizer
    given = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        written = language.model.generate(
            input_ids=given["input_ids"],
            attention_mask=given["attention_mask"],
            max_new_tokens=_MOST_TOKENS,
            do_sample=True,
            temperature=temperature,
            top_k=0,
            top_p=TOP_P,
        )
    length = given["input_ids"].shape[1]
    return [text.strip() for text in tokenizer.batch_decode(written[:, length:], skip_special_tokens=True)]


def measure(
    language: LanguageModel, style: str, *, count: int = 200, seed: int = 0, tuning: bool = False
) -> tuple[Shares, list[str]]:
    """Continue openings and check the texts for grammar and a style.

    Args:
        language: The language model, with or without a hypernetwork.
        style: A key of `lab.demo.stories.story_checker.SHOWN`.
        count: Number of openings.
        seed: Seed of the openings and of the sampling.
        tuning: Whether to take the openings for choosing settings.

    Returns:
        The shares and the texts.
    """
    begun = openings(count, seed, tuning=tuning)
    texts = continue_stories(language, [story.opening for story in begun], seed=seed)
    return Shares.of([check(text, style, story.hero) for text, story in zip(texts, begun, strict=True)]), texts
