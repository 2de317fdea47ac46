"""The lock that jobs of the stand-in host take, one after the other in the order in which they came."""

from __future__ import annotations

import collections
import threading


class Line:
    """As the hosts' own: `acquire` with or without waiting, no timeout, and whoever came first is next."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._waiting: collections.deque[object] = collections.deque()

    def acquire(self, blocking: bool = True) -> bool:
        """Stand in line and wait, or come back with False where someone is in it."""
        place = object()
        with self._change:
            if self._waiting and not blocking:
                return False
            self._waiting.append(place)
            self._change.notify_all()
            self._change.wait_for(lambda: self._waiting[0] is place)
            return True

    def release(self) -> None:
        """Let the next one have it."""
        with self._change:
            self._waiting.popleft()
            self._change.notify_all()

    def comes_to_rest(self, jobs: int = 0, seconds: float = 60) -> bool:
        """Whether so many are soon in line, the one that runs among them; for tests."""
        with self._change:
            return self._change.wait_for(lambda: len(self._waiting) == jobs, seconds)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


queue_lock = Line()
