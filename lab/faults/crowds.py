"""Run two processes in one folder, and many threads on one model."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import torch

from hnloader.attention import attach
from hnloader.attention.attach import Attachment
from lab.faults._children import Ending, run, start
from lab.faults._subjects import Subject
from lab.faults._trials import Count, fresh


def pairs(subject: Subject, place: Path, rounds: int, seed: int) -> Count:
    """Run the same work in two processes in the same folder; kill one of them in every third trial."""
    numbers = random.Random(f"{subject.name} {seed}")
    count = Count()
    for number in range(rounds):
        folder = fresh(place)
        subject.prepare(folder)
        first = start(lambda: subject.work(folder))
        time.sleep(numbers.uniform(0, 0.2))
        second = start(lambda: subject.work(folder))
        if number % 3 == 2:
            time.sleep(numbers.uniform(0, 0.2))
            os.kill(numbers.choice((first.pid, second.pid)), signal.SIGKILL)
        endings = [first.wait(), second.wait()]
        for ending in endings:
            count.add(ending, lambda: subject.check(folder))
        if all(ending.how == "error" for ending in endings):
            count.wrong.append(f"both processes failed: {endings}")
        count.finish(run(lambda: subject.work(folder)), lambda: subject.done(folder))
    return count


def storms(rounds: int, seed: int, threads: int = 6) -> Count:
    """Attach, change, call, explain and detach on one model in several threads, `rounds` times each.

    Nothing may raise, every output must be finite, and the model must be restored bit for bit.
    """
    count = Count()
    ending = run(lambda: _storm(rounds, seed, threads))
    count.endings["done"] += rounds * threads
    count.add(ending, lambda: None)
    return count


def _storm(rounds: int, seed: int, threads: int) -> None:
    from tests.support.small_models import WIDTHS, assert_untouched, fingerprint, make_hypernetwork, make_unet
    from tests.support.small_models import run as call

    torch.set_num_threads(1)
    unet = make_unet("sd1")
    before, expected = fingerprint(unet), call(unet)
    styles = [
        make_hypernetwork(WIDTHS["sd1"], seed=index, name=f"style{index}", activation=activation)
        for index, activation in enumerate(("relu", None, "relu", None))
    ]
    failures: list[BaseException] = []

    def work(number: int) -> None:
        numbers = random.Random(f"{seed} {number}")
        try:
            for _ in range(rounds):
                chosen = numbers.sample(styles, numbers.randrange(1, 3))
                attached: Attachment = attach(
                    unet,
                    [(style, numbers.uniform(-1, 1)) for style in chosen],
                    end=numbers.choice((1.0, 0.5)),
                    exact=numbers.random() < 0.2,
                    fold=numbers.random() < 0.7,
                )
                for _ in range(numbers.randrange(3)):
                    assert bool(torch.isfinite(call(unet, timestep=torch.tensor(numbers.randrange(1000)))).all())
                    attached.set_strength(numbers.uniform(-1, 1))
                    str(attached.explain())
                attached.detach()
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if failures:
        raise failures[0]
    assert_untouched(unet, before)
    assert torch.equal(call(unet), expected)


__all__ = ["Ending", "pairs", "storms"]
