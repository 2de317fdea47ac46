"""Work that a page watches and cancels."""

from __future__ import annotations

import threading

import pytest

from hnloader.errors import CancelledError
from hnloader.ui import jobs


def test_updates_end_with_the_work_and_the_result_follows() -> None:
    def work(job: jobs.Job[str]) -> str:
        for number in range(3):
            job.report(number, 3, f"step {number}")
        return "done"

    job = jobs.Job(work)
    seen = [update.done for update in job.updates()]
    assert seen == sorted(seen)
    assert seen[-1] == 2
    assert job.result() == "done"
    assert jobs.cancel(job.token) is False


def test_cancelling_stops_at_the_next_report_and_interrupts() -> None:
    interrupted, cancelled = threading.Event(), threading.Event()

    def work(job: jobs.Job[None]) -> None:
        job.report(0, 10, "begun")
        cancelled.wait()
        job.report(1, 10, "not reached")
        pytest.fail("went on after it was cancelled")

    job = jobs.Job(work, interrupted.set)
    for update in job.updates():
        assert update.text == "begun"
        assert jobs.cancel(job.token)
        cancelled.set()
    assert interrupted.is_set()
    with pytest.raises(CancelledError):
        job.result()


def test_a_page_that_is_closed_cancels_its_job() -> None:
    go_on = threading.Event()

    def work(job: jobs.Job[None]) -> None:
        job.report(0, 1, "begun")
        go_on.wait()
        job.check()

    job = jobs.Job(work)
    updates = job.updates()
    next(updates)
    updates.close()
    go_on.set()
    list(job.updates())
    with pytest.raises(CancelledError):
        job.result()


def test_an_error_in_the_work_is_the_result_s() -> None:
    def work(job: jobs.Job[None]) -> None:
        raise ValueError("broken")

    job = jobs.Job(work)
    assert list(job.updates()) == []
    with pytest.raises(ValueError, match="broken"):
        job.result()


@pytest.mark.parametrize("token", [None, "", "no such job"])
def test_cancelling_nothing_does_nothing(token: str | None) -> None:
    assert jobs.cancel(token) is False
