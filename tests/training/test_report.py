"""The HTML report."""

from __future__ import annotations

from pathlib import Path

import torch

from hnloader.training import train
from hnloader.training.run_folder import run_folder
from tests.support.trainings import Run


def test_the_report_is_one_file(settings_of: Run, images: Path) -> None:
    (images / "0.txt").write_text("<script>alert('a')</script> & more")
    (images / "broken.png").write_text("")
    result = train(settings_of(previews__every_n_steps=6, previews__num_inference_steps=2, validate_every_n_steps=3))
    page = (run_folder(result.output) / "report.html").read_text()
    for words in ("validation", "layer_structure", "<polyline", "broken.png", "Cannot be read", torch.__version__):
        assert words in page
    assert "&lt;script&gt;alert" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png;base64,") == 8  # the previews, the strengths and six images
