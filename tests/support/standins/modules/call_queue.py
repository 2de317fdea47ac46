"""The lock that jobs take, first come, first served."""

from __future__ import annotations

import collections
import threading


class Line:
    """Like the hosts' lock: fair, with or without waiting, without a timeout."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._waiting: collections.deque[object] = collections.deque()

    def acquire(self, blocking: bool = True) -> bool:
        """Wait in line; if not `blocking`, return False when the line is not empty."""
        place = object()
        with self._change:
            if self._waiting and not blocking:
                return False
            self._waiting.append(place)
            self._change.notify_all()
            self._change.wait_for(lambda: self._waiting[0] is place)
            return True

    def release(self) -> None:
        """Pass the lock on."""
        with self._change:
            self._waiting.popleft()
            self._change.notify_all()

    def comes_to_rest(self, jobs: int = 0, seconds: float = 60) -> bool:
        """Tell if the line soon has this number of jobs, including the running one; for tests."""
        with self._change:
            return self._change.wait_for(lambda: len(self._waiting) == jobs, seconds)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


queue_lock = Line()
