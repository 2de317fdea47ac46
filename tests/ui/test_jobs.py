"""Jobs that a page watches and cancels."""

from __future__ import annotations

import threading

import pytest

from hnloader.errors import CancelledError, HypernetworkError
from hnloader.ui.jobs import MOST_JOBS, Job, cancel


def test_updates_end_with_the_work() -> None:
    def work(job: Job[str]) -> str:
        for number in range(3):
            job.report(number, 3, f"step {number}")
        return "done"

    job = Job(work)
    seen = [update.done for update in job.updates()]
    assert seen == sorted(seen)
    assert seen[-1] == 2
    assert job.result() == "done"
    assert cancel(job.token) is False


def test_cancelling_interrupts_and_stops_at_the_next_report() -> None:
    interrupted, cancelled = threading.Event(), threading.Event()

    def work(job: Job[None]) -> None:
        job.report(0, 10, "started")
        cancelled.wait()
        job.report(1, 10, "not reached")
        pytest.fail("the work continued after it was cancelled")

    job = Job(work, interrupted.set)
    for update in job.updates():
        assert update.text == "started"
        assert cancel(job.token)
        cancelled.set()
    assert interrupted.is_set()
    with pytest.raises(CancelledError):
        job.result()


def test_closing_the_page_cancels_its_job() -> None:
    release = threading.Event()

    def work(job: Job[None]) -> None:
        job.report(0, 1, "started")
        release.wait()
        job.check()

    job = Job(work)
    updates = job.updates()
    next(updates)
    updates.close()
    release.set()
    list(job.updates())
    with pytest.raises(CancelledError):
        job.result()


def test_the_result_raises_the_work_s_error() -> None:
    def work(job: Job[None]) -> None:
        raise ValueError("broken")

    job = Job(work)
    assert list(job.updates()) == []
    with pytest.raises(ValueError, match="broken"):
        job.result()


@pytest.mark.parametrize("token", [None, "", "no such job"])
def test_an_unknown_token_cancels_nothing(token: str | None) -> None:
    assert cancel(token) is False


def test_a_job_beyond_the_limit_is_refused() -> None:
    release = threading.Event()
    running = [Job(lambda job: release.wait(60)) for _ in range(MOST_JOBS)]
    refused = Job(lambda job: pytest.fail("it runs"))
    assert list(refused.updates()) == []
    with pytest.raises(HypernetworkError, match="8"):
        refused.result()
    release.set()
    for job in running:
        list(job.updates())
    after = Job(lambda job: 7)
    list(after.updates())
    assert after.result() == 7
