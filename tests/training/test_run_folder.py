"""Other things in the folder of a training run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hnloader.errors import HypernetworkError
from hnloader.training import prepare
from hnloader.training.run_folder import run_folder
from tests.support.trainings import config_in


def replaced(path: Path, by: str) -> None:
    """Put something else where a file or a folder is."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if by == "folder":
        path.mkdir(parents=True)
    elif by == "file":
        path.write_bytes(b"something else")
    elif by == "link":
        path.symlink_to(path.with_name("nowhere"))


STATE = "state-00000002.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize("by", ["folder", "file", "link"])
@pytest.mark.parametrize(
    ("name", "option"),
    [
        *(
            (name, "resume")
            for name in ("", STATE, "cache", "lock", "best.pt", "previews", "status.json", "report.html")
        ),
        *((name, "restart") for name in ("", STATE)),
    ],
)
def test_foreign_files_in_the_run_folder(name: str, by: str, option: str, copied: Path, tiny_model: Path) -> None:
    replaced(run_folder(copied / "style.pt") / name, by)
    changes = {"steps": 3, "previews.every_n_steps": 1, "previews.num_inference_steps": 1, "previews.count": 1}
    try:
        result = prepare(config_in(copied, tiny_model, **changes), **{option: True}).run()
    except HypernetworkError as error:
        assert str(error)
    else:
        assert result.step == 3
