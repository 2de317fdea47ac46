from __future__ import annotations

import copy
import pickle

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
)

from hnloader.attention import Application, attach, attachments
from hnloader.attention.schedule import SamplingClock, is_active, timestep_of
from tests.support.small_models import WIDTHS, assert_same, make_hypernetwork, make_unet, reference, run

SCHEDULERS = [DDIMScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, LCMScheduler, PNDMScheduler]
HN = make_hypernetwork(WIDTHS["sd1"])


class Pipeline:
    def __init__(self, scheduler) -> None:
        self.scheduler = scheduler
        self.unet = make_unet()


def pipeline_with(scheduler, steps=10, begin=0):
    scheduler.set_timesteps(steps)
    if begin and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    return Pipeline(scheduler)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_steps_of_a_run_go_from_zero_to_one(kind):
    pipeline = pipeline_with(kind(), 10)
    clock = SamplingClock(pipeline)
    steps = [clock.step(timestep_of((None, t), {})) for t in pipeline.scheduler.timesteps]
    assert steps[0][0] == 0
    assert steps[-1][1] == pytest.approx(1, abs=2 / len(steps))
    assert steps == sorted(steps)


def test_steps_divide_the_sampling():
    pipeline = pipeline_with(DDIMScheduler(), 4)
    clock = SamplingClock(pipeline)
    steps = [clock.step(float(t)) for t in pipeline.scheduler.timesteps]
    assert steps == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler])
def test_a_run_that_begins_later_goes_from_zero_to_one(kind):
    """img2img with schedulers that know its begin and with others."""
    pipeline = pipeline_with(kind(), 10, begin=6)
    clock = SamplingClock(pipeline)
    steps = [clock.step(float(t)) for t in pipeline.scheduler.timesteps[6:]]
    assert steps == [(0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1)]
    pipeline.scheduler.set_timesteps(4)
    assert [clock.step(float(t)) for t in pipeline.scheduler.timesteps] == steps


def test_attaching_during_a_run_keeps_the_position():
    pipeline = pipeline_with(EulerDiscreteScheduler(), 4)
    assert SamplingClock(pipeline).step(float(pipeline.scheduler.timesteps[2])) == (0.5, 0.75)


def test_a_replaced_scheduler_is_followed():
    pipeline = pipeline_with(DDIMScheduler(), 10)
    clock = SamplingClock(pipeline)
    clock.step(float(pipeline.scheduler.timesteps[3]))
    pipeline.scheduler = DDIMScheduler()
    pipeline.scheduler.set_timesteps(2)
    assert [clock.step(float(t)) for t in pipeline.scheduler.timesteps] == [(0, 0.5), (0.5, 1)]


def test_without_a_pipeline_the_timestep_decides():
    clock = SamplingClock()
    assert clock.step(1000) == (0, 0)
    assert clock.step(250) == (0.75, 0.75)
    assert clock.step(0) == (1, 1)
    assert clock.step(2000) == (0, 0)


def test_an_unknown_timestep_gives_its_own_fraction():
    pipeline = pipeline_with(DDIMScheduler(num_train_timesteps=500), 10)
    assert SamplingClock(pipeline).step(125.5) == (0.749, 0.749)


def test_the_pipeline_may_be_deleted():
    pipeline = pipeline_with(DDIMScheduler(), 10)
    clock = SamplingClock(pipeline)
    assert clock.step(900) == (0, 0.1)
    del pipeline
    assert clock.step(900) == pytest.approx((0.1, 0.1))


def test_a_copied_pipeline_is_followed_by_its_copied_model():
    pipeline = pipeline_with(DDIMScheduler(), 10)
    attach(pipeline, HN, start=0.5)
    twin = copy.deepcopy(pipeline)
    twin.scheduler.set_timesteps(2)
    assert attachments(twin)[0]._clock.step(500) == (0, 0.5)
    alone = copy.deepcopy(pipeline.unet)
    assert attachments(alone)[0]._clock.step(900) == (0, 0.1)
    assert pickle.loads(pickle.dumps(SamplingClock(pipeline))).step(900) == pytest.approx((0.1, 0.1))


@pytest.mark.parametrize(
    ("step", "start", "end", "expected"),
    [
        ((0, 0.1), 0, 1, True),
        ((0.2, 0.3), 0.25, 1, False),
        ((0.3, 0.4), 0.25, 1, True),
        ((0.3, 0.4), 0, 0.4, True),
        ((0.3, 0.4), 0, 0.35, False),
        ((0.9, 1), 0.9, 1, True),
    ],
)
def test_a_step_is_active_if_all_of_it_is_in_the_window(step, start, end, expected):
    assert is_active(step, start, end) is expected


@pytest.mark.parametrize("args", [(None, 7), (None, torch.tensor(7)), (None, torch.tensor([3, 7.0]))])
def test_the_timestep_is_found_among_the_arguments(args):
    assert timestep_of(args, {}) == 7
    assert timestep_of((), {"timestep": args[1]}) == 7
    assert timestep_of((), {"timesteps": args[1]}) == 7


def test_a_window_opens_and_closes_in_the_model():
    unet = make_unet()
    plain, changed = run(unet), run(reference(unet, [(HN, 0.8, 0.8)]))
    with attach(unet, HN, 0.8, start=0.2, end=0.6):
        assert torch.equal(run(unet, timestep=torch.tensor(900)), run(make_unet(), timestep=torch.tensor(900)))
        assert_same(run(unet, timestep=torch.tensor(500)), changed)
        assert_same(run(unet, timestep=500), changed)
        assert torch.equal(run(unet, timestep=100), run(make_unet(), timestep=100))
    assert torch.equal(run(unet), plain)


def test_each_hypernetwork_has_its_own_window():
    unet = make_unet()
    one, two = make_hypernetwork(WIDTHS["sd1"], 1), make_hypernetwork(WIDTHS["sd1"], 2)
    expected = {
        900: [(one, 0.8, 0.8)],
        500: [(one, 0.8, 0.8), (two, 0.5, 0.5)],
        100: [(two, 0.5, 0.5)],
    }
    with attach(unet, [Application(one, 0.8, end=0.6), Application(two, 0.5, start=0.4)]):
        for timestep, applied in expected.items():
            assert_same(run(unet, timestep=timestep), run(reference(make_unet(), applied), timestep=timestep))


def test_the_timestep_is_not_read_without_a_window():
    """Reading it would wait for the device in every step."""

    class Unreadable(torch.Tensor):
        def __float__(self):
            raise AssertionError("read back")

        def max(self, *_):
            raise AssertionError("read back")

    timestep = torch.tensor(500).as_subclass(Unreadable)
    unet = make_unet()
    with attach(unet, HN):
        run(unet, timestep=timestep)
    with attach(unet, HN, start=0.1), pytest.raises(AssertionError, match="read back"):
        run(unet, timestep=timestep)


def test_a_strength_set_inside_a_closed_window_waits_for_it_to_open():
    unet = make_unet()
    with attach(unet, HN, 0.8, start=0.4) as attachment:
        assert torch.equal(run(unet, timestep=900), run(make_unet(), timestep=900))
        attachment.set_strength(0.3)
        assert torch.equal(run(unet, timestep=900), run(make_unet(), timestep=900))
        assert_same(run(unet), run(reference(make_unet(), [(HN, 0.3, 0.3)])))
