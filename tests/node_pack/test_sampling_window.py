"""Windows of the sampling."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hnloader.errors import HypernetworkError
from tests.support.standins.comfyui_host import Host

SIGMAS = [10.0, 6.0, 3.0, 1.0, 0.0]
SAMPLING = SimpleNamespace(percent_to_sigma=lambda percent: 10.0 * (1 - percent))


@pytest.mark.parametrize(
    ("start", "end", "steps"),
    [
        (0.0, 1.0, [0, 1, 2, 3]),
        (0.5, 1.0, [2, 3]),
        (0.0, 0.5, [0, 1]),
        (0.25, 0.75, [1, 2]),
        (0.0, 0.1, []),
        (0.3, 1.0, [2, 3]),
    ],
)
def test_steps(start: float, end: float, steps: list[int], comfyui: Host) -> None:
    window = comfyui.part("sampling_window").Window(start, end, "steps")
    assert [step for step in range(4) if window.holds(SIGMAS[step], SIGMAS, None)] == steps


def test_calls_between_two_steps_belong_to_the_first(comfyui: Host) -> None:
    window = comfyui.part("sampling_window").Window(0.5, 1.0, "steps")
    assert [window.holds(sigma, SIGMAS, None) for sigma in (6.1, 4.5, 3.01, 2.9, 0.5)] == [
        False,
        False,
        False,
        True,
        True,
    ]


def test_percent_counts_the_noise(comfyui: Host) -> None:
    window = comfyui.part("sampling_window").Window(0.2, 0.6)
    assert [window.holds(sigma, [], SAMPLING) for sigma in (9.0, 8.0, 5.0, 4.0, 3.0)] == [
        False,
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(("start", "end"), [(0.5, 0.5), (0.8, 0.2), (-0.1, 1.0), (0.0, 1.1)])
def test_empty_windows_are_refused(start: float, end: float, comfyui: Host) -> None:
    with pytest.raises(HypernetworkError, match=f"{start:g}"):
        comfyui.part("sampling_window").Window(start, end)


def test_steps_need_a_sampler_that_reports_them(comfyui: Host) -> None:
    with pytest.raises(HypernetworkError, match="percent"):
        comfyui.part("sampling_window").Window(0.5, 1.0, "steps").holds(1.0, [], None)
