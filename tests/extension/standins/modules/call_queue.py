"""The lock that jobs of the stand-in host take, one after the other."""

from __future__ import annotations

import threading

queue_lock = threading.Lock()  # the hosts' own has the same `acquire(blocking)` and `release()`
