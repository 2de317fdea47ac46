"""Measure the bundled predictor of the language model: `python -m lab.demo.stories.text_predictor_study`.

The styles are the named ones, and drawn ones that no training saw. The predictor is given four stories of a style. The
loss is that of the units of other stories, without a file, with the predicted one, and with that of another style, the
next in the table. Then the model continues openings, and the table shows the share of continuations in the style, and
of units. A named style is found by its words, a drawn one by its rules.
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hnloader.attention import attach
from hnloader.demo import text_predictor_path
from hnloader.network import Hypernetwork
from hnloader.prediction.predicting import StylePredictor
from hnloader.prediction.predictor_file import load_predictor
from hnloader.training.text_batches import grouped, summed_loss, trained_count
from hnloader.training.text_dataset import Document, Part, Row, rows_of
from lab.demo.predictor_study import prediction_speed
from lab.demo.stories.continuations import continue_stories, openings
from lab.demo.stories.drawn_styles import drawn_stories, drawn_style
from lab.demo.stories.grammar import is_unit, units
from lab.demo.stories.story_checker import SHOWN, shows
from lab.demo.stories.styles import bundled_model
from lab.demo.stories.writer import Story, stories

# Shares of continuations and of units in style with fully trained files: docs/dev/demo-language-model.md.
TRAINED = {
    "past": (0.950, 0.987),
    "bare": (0.955, 0.989),
    "doubt": (0.755, 0.929),
    "reversed": (0.975, 0.992),
    "sea": (0.010, 0.252),
}
UNSEEN, GIVEN, MEASURED = 12, 4, 24
_SEED = 77
_BLOCK = 512


@dataclass(frozen=True)
class StorySubject:
    """A style to measure.

    Attributes:
        name: Its name; unseen styles are numbered.
        about: What is fixed in it.
        given: Stories for the predictor.
        others: Stories for the loss.
        shows: Returns True for a unit in the style.
        has_form: Returns True for a unit with its form, whatever its words.
    """

    name: str
    about: str
    given: Sequence[Story]
    others: Sequence[Story]
    shows: Callable[[Sequence[str]], bool]
    has_form: Callable[[Sequence[str]], bool]


def subjects(unseen: int = UNSEEN) -> list[StorySubject]:
    """Return the named styles, and drawn ones of other seeds than the training's."""
    found = []
    for name in SHOWN:
        told = list(stories(name, GIVEN + MEASURED, _SEED, validation=True))
        shown = functools.partial(shows, name)
        found.append(StorySubject(name, name, told[:GIVEN], told[GIVEN:], shown, shown))
    for index in range(unseen):
        style = drawn_style(random.Random(f"unseen {index}"))
        told = list(drawn_stories(style, GIVEN + MEASURED, f"unseen {index}", validation=True))
        found.append(
            StorySubject(f"unseen {index:02}", style.name, told[:GIVEN], told[GIVEN:], style.shows, style.has_form)
        )
    return found


class TextStudy:
    """The measurements with a predictor and the bundled language model."""

    def __init__(self, predictor: Path, prompts: int) -> None:
        self.language = bundled_model()
        self.predictor = StylePredictor(load_predictor(predictor), self.language)
        self._begun = openings(prompts)

    def predict(self, subject: StorySubject, folder: Path) -> Hypernetwork:
        """Return the predicted hypernetwork."""
        return self.predictor.predict(self.written(subject, folder), name=subject.name).hypernetwork

    def written(self, subject: StorySubject, folder: Path) -> Path:
        """Write the given stories as a user would, one text file each, and return the folder."""
        place = folder / subject.name.replace(" ", "-")
        place.mkdir(parents=True, exist_ok=True)
        for index, story in enumerate(subject.given):
            (place / f"{index}.txt").write_text(str(story), encoding="utf-8")
        return place

    @torch.no_grad()
    def loss(self, subject: StorySubject, hypernetwork: Hypernetwork | None) -> float:
        """Return the mean loss of the units of other stories, in nats per token."""
        rows = [self._row(story) for story in subject.others]
        if hypernetwork is None:
            total = sum(float(summed_loss(self.language.model, group, self.language.device)) for group in grouped(rows))
        else:
            with attach(self.language.model, hypernetwork, 1.0):
                return self.loss(subject, None)
        return total / trained_count(rows)

    def _row(self, story: Story) -> Row:
        document = Document("", (Part(story.opening, False), Part(story.body, True)))
        (row,) = rows_of(document, self.language.tokenizer, _BLOCK)
        return row

    def continued(self, hypernetwork: Hypernetwork | None) -> list[str]:
        """Continue the openings."""
        prompts = [story.opening for story in self._begun]
        if hypernetwork is None:
            return continue_stories(self.language, prompts)
        with attach(self.language.model, hypernetwork, 1.0):
            return continue_stories(self.language, prompts)

    def speed(self, folder: Path) -> tuple[float, bool]:
        """See `prediction_speed`."""
        return prediction_speed(self.predictor, folder)


def shares(texts: Sequence[str], found: Callable[[Sequence[str]], bool]) -> tuple[float, float]:
    """Return the share of texts of which each unit is found, and the share of units."""
    verdicts = [[found(unit) for unit in units(text)] or [False] for text in texts]
    every = [right for verdict in verdicts for right in verdict]
    return sum(map(all, verdicts)) / len(verdicts), sum(every) / len(every)


@dataclass(frozen=True)
class Measured:
    """The measures of a style."""

    losses: tuple[float, float, float]  # without, own file, another style's
    plain: tuple[float, float]
    shown: tuple[float, float]
    form: tuple[float, float]  # of units: without, own file
    grammatical: float


def measure_all(study: TextStudy, chosen: Sequence[StorySubject], folder: Path) -> Iterator[Measured]:
    """Yield the measures of each style."""
    files = [study.predict(subject, folder) for subject in chosen]
    plain = study.continued(None)
    for index, (subject, file) in enumerate(zip(chosen, files, strict=True)):
        other = files[(index + 1) % len(files)]
        texts = study.continued(file)
        losses = (study.loss(subject, None), study.loss(subject, file), study.loss(subject, other))
        grammatical, _ = shares(texts, is_unit)
        form = (shares(plain, subject.has_form)[1], shares(texts, subject.has_form)[1])
        yield Measured(losses, shares(plain, subject.shows), shares(texts, subject.shows), form, grammatical)


def print_table(chosen: Sequence[StorySubject], found: Sequence[Measured]) -> None:
    """Print the measures as Markdown."""
    print("| style | loss: none | own | another's | texts: own | trained | units: own | trained | form: none | own |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for subject, each in zip(chosen, found, strict=True):
        texts, of_units = [f"{share:.1%}" for share in TRAINED.get(subject.name, ())] or ["", ""]
        losses = [f"{loss:.3f}" for loss in each.losses]
        cells = [subject.name, *losses, f"{each.shown[0]:.1%}", texts, f"{each.shown[1]:.1%}", of_units]
        print(f"| {' | '.join([*cells, *(f'{share:.1%}' for share in each.form)])} |")
    for label, wanted in (("named", True), ("unseen", False)):
        kept = [each for subject, each in zip(chosen, found, strict=True) if (subject.name in TRAINED) == wanted]
        if kept:
            without, own, other = (statistics.mean(each.losses[index] for each in kept) for index in range(3))
            print(f"{label}, mean: loss {without:.3f} without, {own:.3f} with the own file, {other:.3f} with another's")
            units_shown, before, after = (
                statistics.mean(values) for values in zip(*((each.shown[1], *each.form) for each in kept), strict=True)
            )
            print(f"{label}, mean: units in style {units_shown:.1%}, with its form {after:.1%}, without {before:.1%}")
    plain = max(each.plain[1] for each in found)
    print(f"units in a style without a file: {plain:.1%} at most")
    named = [f"{s.name} {each.grammatical:.1%}" for s, each in zip(chosen, found, strict=True) if s.name in TRAINED]
    print(f"grammatical continuations: {', '.join(named)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.demo.stories.text_predictor_study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--predictor", type=Path, default=text_predictor_path(), help="default: the bundled one")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--unseen", type=int, default=UNSEEN, help="drawn styles")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    study, measured = TextStudy(chosen.predictor, chosen.prompts), subjects(chosen.unseen)
    with tempfile.TemporaryDirectory() as name:
        print_table(measured, list(measure_all(study, measured, Path(name))))
        milliseconds, same = study.speed(study.written(measured[0], Path(name)))
    print(
        f"prediction from {GIVEN} texts: {milliseconds:.0f} ms; {'the same bits' if same else 'other bits'} each time"
    )
    for subject in measured:
        if subject.about != subject.name:
            print(f"{subject.name}: {subject.about}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
