"""Errors of extensions, which the hosts print and survive."""

from __future__ import annotations

import sys

reports: list[tuple[str, BaseException | None]] = []


def report(message: str, *, exc_info: bool = False) -> None:
    reports.append((message, sys.exc_info()[1]))


def display(error: BaseException, task: str, *, full_traceback: bool = False) -> None:
    reports.append((task, error))
