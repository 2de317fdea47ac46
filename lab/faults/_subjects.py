"""Define the interrupted work, and the checks of its files afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

import hnloader
from hnloader.conversion.bulk import convert_many
from hnloader.conversion.planning import plan
from hnloader.conversion.to_format import ToFormat
from hnloader.embeddings import Embedding, load_embedding, save_embedding
from hnloader.files import TEMPORARY_SUFFIX, remove_leftovers
from hnloader.infotext import Infotext, read_infotext, save_png
from hnloader.network import Architecture, Hypernetwork
from hnloader.ui.sidecars import read_description, read_notes, save_notes, save_preview

Act = Callable[[Path], None]


@dataclass(frozen=True)
class Subject:
    """Work that writes files.

    Attributes:
        name: Name in the output.
        prepare: Fills an empty folder with the input of the work.
        work: The work to interrupt; another call resumes it.
        check: Raises AssertionError for lost or incomplete files. Called after each interruption.
        done: The same check after undisturbed work.
        must_write: True if work that cannot write must raise; a cache need not.
    """

    name: str
    prepare: Act
    work: Act
    check: Act
    done: Act
    must_write: bool = True


def hypernetwork(seed: int, width: int = 64, name: str = "style") -> Hypernetwork:
    """Make a hypernetwork with random weights from a seed."""
    torch.manual_seed(seed)
    keys: dict[str, object] = {"layer_structure": [1, 2, 1], "activation_func": "relu", "activate_output": False}
    return Hypernetwork.new((width,), Architecture((1, 2, 1), "relu"), name=name, metadata={**keys, "step": seed})


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def leftovers(folder: Path) -> list[Path]:
    """Return the temporary files below a folder."""
    return [path for path in folder.rglob("*") if path.name.endswith(TEMPORARY_SUFFIX)]


def no_leftovers(folder: Path) -> None:
    """Check that the folder has no temporary files."""
    assert not leftovers(folder), f"temporary files remain: {leftovers(folder)}"


def same(found: Hypernetwork, expected: Hypernetwork) -> bool:
    """Return True if all tensors, keys and the step are equal."""
    one, other = found.state_dict(), expected.state_dict()
    return (
        one.keys() == other.keys()
        and all(torch.equal(one[key], other[key]) for key in one)
        and found.metadata.get("step") == expected.metadata.get("step")
    )


# -- a file saved repeatedly

_TIMES = 12


def _saved(suffix: str) -> Subject:
    versions = [hypernetwork(seed) for seed in range(_TIMES)]

    def target(folder: Path) -> Path:
        return folder / f"style{suffix}"

    def work(folder: Path) -> None:
        remove_leftovers([folder])
        for version in versions:
            hnloader.save(version, target(folder))

    def check(folder: Path) -> None:
        found = hnloader.load(target(folder))
        assert any(same(found, version) for version in versions), "the file is not one of the saved versions"

    def done(folder: Path) -> None:
        assert same(hnloader.load(target(folder)), versions[-1])
        no_leftovers(folder)

    return Subject(f"save {suffix}", lambda folder: hnloader.save(versions[0], target(folder)), work, check, done)


# -- files beside a hypernetwork


def _notes() -> Subject:
    texts = [f"notes {number} " + "é" * (200 * number) for number in range(20)]

    def path(folder: Path) -> Path:
        return folder / "ink.pt"

    def prepare(folder: Path) -> None:
        path(folder).touch()
        (folder / "ink.json").write_text(json.dumps({"description": "kept", "notes": texts[0]}))

    def work(folder: Path) -> None:
        remove_leftovers([folder])
        for text in texts:
            save_notes(path(folder), text)

    def check(folder: Path) -> None:
        assert read_notes(path(folder)) in texts, "the notes are not one of the saved versions"
        assert read_description(path(folder)) == "kept", "the description is lost"

    def done(folder: Path) -> None:
        assert read_notes(path(folder)) == texts[-1]
        no_leftovers(folder)

    return Subject("notes", prepare, work, check, done)


def _images() -> Subject:
    from PIL import Image

    colors = ["red", "green", "blue", "white"]

    def preview(folder: Path, color: str) -> None:
        save_preview(folder / "ink.pt", Image.new("RGB", (300, 300), color))

    def image(folder: Path, color: str) -> None:
        about = Infotext(color, "", {"Steps": "20", "Sampler": "DDIM", "Seed": "1"})
        save_png(Image.new("RGB", (300, 300), color), folder / "made.png", about)

    def prepare(folder: Path) -> None:
        preview(folder, "red")
        image(folder, "red")

    def work(folder: Path) -> None:
        remove_leftovers([folder])
        for color in colors * 3:
            preview(folder, color)
            image(folder, color)

    def whole(path: Path) -> tuple[int, ...]:
        with Image.open(path) as image:
            image.load()
            assert len(image.getcolors() or []) == 1
            return image.getpixel((0, 0))  # type: ignore[return-value]

    def check(folder: Path) -> None:
        whole(folder / "ink.preview.png")
        about = read_infotext(folder / "made.png")
        assert about is not None
        assert Image.new("RGB", (1, 1), about.prompt).getpixel((0, 0)) == whole(folder / "made.png")

    def done(folder: Path) -> None:
        check(folder)
        assert whole(folder / "ink.preview.png") == (255, 255, 255)
        no_leftovers(folder)

    return Subject("images", prepare, work, check, done)


def _embedding() -> Subject:
    versions = [Embedding(torch.full((4, 768), float(step)), step=step, name="word") for step in range(_TIMES)]

    def work(folder: Path) -> None:
        remove_leftovers([folder])
        for version in versions:
            save_embedding(version, folder / "word.pt")

    def check(folder: Path) -> None:
        found = load_embedding(folder / "word.pt")
        assert torch.equal(found.vectors, torch.full((4, 768), float(found.step or 0)))

    def done(folder: Path) -> None:
        check(folder)
        assert load_embedding(folder / "word.pt").step == _TIMES - 1
        no_leftovers(folder)

    return Subject("embedding", lambda folder: save_embedding(versions[0], folder / "word.pt"), work, check, done)


# -- the library's index


def _index(files: int = 8) -> Subject:
    from hnloader.ui.catalog import Catalog
    from hnloader.ui.catalog_entry import Entry
    from hnloader.ui.index import read_index

    def catalog(folder: Path) -> Catalog:
        return Catalog(lambda: [folder / "library"], folder / "cache")

    def prepare(folder: Path) -> None:
        (folder / "library").mkdir()
        for number in range(files):
            hnloader.save(hypernetwork(number, 8), folder / "library" / f"style {number}.pt")
        list(catalog(folder).inspect_all())

    def work(folder: Path) -> None:
        """In each round, change the time of a file and update the index."""
        for number in range(_TIMES):
            with contextlib.suppress(OSError):
                os.utime(folder / "library" / f"style {number % files}.pt", (number + 1, number + 1))
            list(catalog(folder).inspect_all())

    def described(entries: list[Entry]) -> dict[str, object]:
        return {entry.label: (entry.info and entry.info.step, entry.problem) for entry in entries}

    def check(folder: Path) -> None:
        """Check that the index is complete and agrees with the files."""
        (path,) = (folder / "cache").glob("*.json")
        assert read_index(path), "the index is incomplete"
        found = catalog(folder)
        list(found.inspect_all())
        valid = {f"style {number}.pt": (number, None) for number in range(files)}
        assert described(found.entries()) == valid, "the index contradicts the files"

    def done(folder: Path) -> None:
        check(folder)
        os.utime(folder / "library" / "style 0.pt", (77, 77))
        list(catalog(folder).inspect_all())
        no_leftovers(folder)

    return Subject("index", prepare, work, check, done, must_write=False)


# -- a folder converted


def _converted(files: int = 12) -> Subject:
    made = {f"style-{seed}": hypernetwork(seed, 16 * (1 + seed % 4), f"style-{seed}") for seed in range(files)}

    def prepare(folder: Path) -> None:
        (folder / "old").mkdir()
        for name, version in made.items():
            hnloader.save(version, folder / "old" / f"{name}.pt")
        (folder / "sums.json").write_text(json.dumps({p.name: digest(p) for p in (folder / "old").iterdir()}))

    def work(folder: Path) -> None:
        planned = plan([folder / "old"], suffix=".safetensors", out=folder / "new")
        failed = [each for each in convert_many(planned, ToFormat(".safetensors"), jobs=2) if each.outcome == "failed"]
        if failed:
            bugs = [each.reason for each in failed if "bug" in each.reason]
            assert not bugs, bugs
            raise hnloader.HypernetworkError(failed[0].reason)

    def check(folder: Path) -> None:
        sums = json.loads((folder / "sums.json").read_text())
        assert sums == {p.name: digest(p) for p in (folder / "old").iterdir()}, "a source was changed"
        for path in (folder / "new").glob("*.safetensors"):
            assert same(hnloader.load(path), made[path.stem]), f"{path.name} differs from its source"

    def done(folder: Path) -> None:
        check(folder)
        assert len(list((folder / "new").iterdir())) == files
        no_leftovers(folder)

    return Subject("convert", prepare, work, check, done)


# -- a training run


class Training:
    """A small training on a small model, whose result must not depend on interruptions."""

    def __init__(self, place: Path, steps: int = 10) -> None:
        from PIL import Image

        from tests.support.tiny_model import save_model

        transformers.utils.logging.disable_progress_bar()
        self.place, self.steps = place, steps
        self.reached: dict[Path, int] = {}
        self.model = save_model(place / "tiny")
        self.images = place / "images"
        self.images.mkdir()
        numbers = random.Random(0)
        for index in range(4):
            color = tuple(numbers.randrange(256) for _ in range(3))
            Image.new("RGB", (32, 32), color).save(self.images / f"{index}.png")
        whole = place / "whole"
        whole.mkdir()
        self.work(whole)
        self.expected = hnloader.load(whole / "style.pt")

    def work(self, folder: Path) -> None:
        """Start the training, or resume an interrupted one."""
        from hnloader.training import prepare, read_config
        from hnloader.training.run_folder import run_folder
        from hnloader.training.state import states

        output = folder / "style.pt"
        given = {"model": str(self.model), "images": str(self.images), "output": str(output), "steps": self.steps}
        often: dict[str, object] = {
            "save_every_n_steps": 1,
            "validate_every_n_steps": 5,
            "save_total_limit": 2,
            "lr_warmup_steps": 1,
            "seed": 3,
        }
        previews = {"previews.every_n_steps": 5, "previews.num_inference_steps": 1, "previews.count": 1}
        config = read_config(None, {**given, **often, **previews, "learning_rate": "1e-3"})
        begun = bool(states(run_folder(output)))
        prepare(config, resume=begun, restart=not begun).run()

    def prepare(self, folder: Path) -> None:
        """Put an older file at the place of the output."""
        hnloader.save(hypernetwork(0), folder / "style.pt")

    def check(self, folder: Path) -> None:
        """Check that every state is readable and no saved step is lost."""
        from hnloader.training.state import saved_settings, states

        found = states(folder / "style.training")
        for path in found:
            saved_settings(path)
        reached = int(found[-1].stem.removeprefix("state-")) if found else 0
        before = self.reached.get(folder, 0)
        assert reached >= before, f"step {before} was saved, but the newest is now {reached}"
        self.reached[folder] = reached
        output = hnloader.load(folder / "style.pt")
        assert same(output, hypernetwork(0)) or output.metadata["step"] == self.steps, (
            "the output is from an unfinished training run"
        )

    def done(self, folder: Path) -> None:
        """Check that the file is equal to one from an undisturbed training."""
        self.check(folder)
        assert same(hnloader.load(folder / "style.pt"), self.expected), "the result differs"
        no_leftovers(folder)

    def subject(self) -> Subject:
        """Return the training as a subject."""
        return Subject("train", self.prepare, self.work, self.check, self.done)


def careless() -> Subject:
    """Return a subject that deletes and writes in place, which the scenarios must catch."""

    def work(folder: Path) -> None:
        (folder / "plain.json").touch()
        for version in range(20):
            (folder / "plain.json").unlink()
            with (folder / "plain.json").open("w") as file:
                for line in json.dumps([version] * 20_000, indent=0).splitlines():
                    file.write(line)

    def check(folder: Path) -> None:
        try:
            json.loads((folder / "plain.json").read_text())
        except (ValueError, OSError) as error:
            raise AssertionError("Lost or incomplete.") from error

    def prepare(folder: Path) -> None:
        (folder / "plain.json").write_text("[]")

    return Subject("careless", prepare, work, check, check)


def subjects() -> list[Subject]:
    """Return all subjects except the training, which needs a folder for its model."""
    return [_saved(".pt"), _saved(".safetensors"), _notes(), _images(), _embedding(), _index(), _converted()]
