"""Jobs that an extension starts within another job, such as a detailer of faces."""

from __future__ import annotations

import gc
from types import SimpleNamespace

import pytest
import torch

from tests.support.standins.webui import Webui

ROWS = "<hypernet:ink:0.7>"
# Without a script of ours in the inner job, as ADetailer copies only the scripts that its setting names.
DETAILER = """
from contextlib import closing
from modules import processing, scripts, shared

class Detailer(scripts.Script):
    def title(self):
        return "Detailer"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def postprocess_batch(self, p, *args, **kwargs):
        if not args or not p.iteration == 0:
            return
        with closing(processing.StableDiffusionProcessing(args[0], seed=9)) as inner:
            inner.scripts = None
            shared.inner = processing.process_images(inner)
"""


@pytest.fixture
def detailing(running: Webui) -> Webui:
    running.add_script("detailer", DETAILER)
    running.reload()
    return running


def inner(webui: Webui, prompt: str, rows: str = "") -> torch.Tensor:
    given = {"Detailer": [prompt], "Hypernetworks": [rows]}
    webui.generate("a", alwayson_scripts=given)
    assert webui.hooks == 0
    assert webui.reports == []
    return webui.shared.inner.images[0]


def alone(webui: Webui, prompt: str) -> torch.Tensor:
    return webui.generate(prompt, seed=9).images[0]


def test_inner_job_has_the_rows_of_the_outer(detailing: Webui) -> None:
    assert torch.equal(inner(detailing, "b", ROWS), alone(detailing, f"b{ROWS}"))
    assert torch.equal(inner(detailing, "b<hypernet:wash>", ROWS), alone(detailing, f"b{ROWS}<hypernet:wash>"))
    assert torch.equal(inner(detailing, "b"), alone(detailing, "b"))


def test_rows_end_with_their_job(detailing: Webui) -> None:
    plain = alone(detailing, "b")
    inner(detailing, "b", ROWS)
    assert torch.equal(alone(detailing, "b"), plain)
    job = detailing.part("processing").StableDiffusionProcessing("b", seed=9)
    job.scripts = None
    assert torch.equal(detailing.part("processing").process_images(job).images[0], plain)


def test_rows_end_with_a_job_that_failed(detailing: Webui) -> None:
    plain = alone(detailing, "b")

    def fail(step: int) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        detailing.generate("a", alwayson_scripts={"Hypernetworks": [ROWS]}, at_step=fail)
    gc.collect()
    job = detailing.part("processing").StableDiffusionProcessing("b", seed=9)
    job.scripts = None
    assert torch.equal(detailing.part("processing").process_images(job).images[0], plain)


def test_changes_of_a_plot_reach_the_inner_job(detailing: Webui) -> None:
    """A cell of a plot with strength 0 has no hypernetwork in its details either."""
    plain = alone(detailing, "b")
    job = detailing.part("processing").StableDiffusionProcessing(
        "a", alwayson_scripts={"Detailer": ["b<hypernet:ink>"]}
    )
    plot = SimpleNamespace(axis_options=[], AxisOption=lambda *given, **more: given)
    scripts = detailing.part("scripts")
    scripts.scripts_data.append(scripts.ScriptClassData(scripts.Script, "scripts/xyz_grid.py", "", plot))
    detailing.part("script_callbacks").run("before_ui")
    scripts.scripts_data.pop()
    (apply,) = (apply for label, _, apply in plot.axis_options if label == "Hypernetwork strength")
    apply(job, 0.0, [0.0])
    detailing.part("processing").process_images(job)
    assert torch.equal(detailing.shared.inner.images[0], plain)
