"""Axes of the X/Y/Z plot, in a stand-in of its script."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from tests.support.standins.webui import Webui


@dataclass
class AxisOption:
    label: str
    type: type
    apply: Any
    confirm: Any = None
    cost: float = 0.0
    choices: Any = None


@dataclass
class Plot:
    axis_options: list[AxisOption] = field(default_factory=lambda: [AxisOption("Seed", int, None)])
    AxisOption: type = AxisOption


@pytest.fixture
def plot(webui: Webui, running: Webui) -> Plot:
    """The plot's script, after the webui has built its page twice."""
    plot = Plot()
    scripts = webui.part("scripts")
    scripts.scripts_data.append(scripts.ScriptClassData(scripts.Script, "scripts/xyz_grid.py", "", plot))
    for _ in range(2):
        webui.part("script_callbacks").run("before_ui")
    return plot


def axis(plot: Plot, label: str) -> AxisOption:
    (found,) = (option for option in plot.axis_options if option.label == label)
    return found


def test_axes_are_added_once_beside_others(plot: Plot) -> None:
    labels = ["Seed", "Hypernetwork", "Hypernetwork strength", "Hypernetwork start", "Hypernetwork end"]
    assert [option.label for option in plot.axis_options] == labels
    assert axis(plot, "Hypernetwork").choices() == ["None", "ink", "wash"]


@pytest.mark.parametrize(
    ("label", "value", "prompt"),
    [
        ("Hypernetwork strength", 0.5, "a<hypernet:ink:0.5>"),
        ("Hypernetwork start", 0.5, "a<hypernet:ink:1:start=0.5>"),
        ("Hypernetwork end", 0.5, "a<hypernet:ink:1:end=0.5>"),
        ("Hypernetwork", "wash", "a<hypernet:wash:1>"),
        ("Hypernetwork", "None", "a"),
    ],
)
def test_axis_changes_the_hypernetwork(label: str, value: Any, prompt: str, plot: Plot, running: Webui) -> None:
    processing = running.part("processing")
    job = processing.StableDiffusionProcessing("a<hypernet:ink>")
    axis(plot, label).confirm(job, [value])
    axis(plot, label).apply(job, value, [value])
    assert torch.equal(processing.process_images(job).images[0], running.generate(prompt).images[0])


@pytest.mark.parametrize(
    ("label", "value"), [("Hypernetwork", "inkk"), ("Hypernetwork start", 1.0), ("Hypernetwork end", 0.0)]
)
def test_impossible_value_is_an_error_before_the_first_image(label: str, value: Any, plot: Plot) -> None:
    with pytest.raises(RuntimeError) as raised:
        axis(plot, label).confirm(None, [value])
    assert str(value) in str(raised.value)
