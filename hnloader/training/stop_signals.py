"""Stop a training run by Ctrl-C or SIGTERM."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stop_signals(stop: Callable[[], None] | None = None, *, once: bool = False) -> Iterator[None]:
    """Call `stop` at the first signal while this is active; a second one raises KeyboardInterrupt.

    Args:
        stop: Without it, the first signal raises KeyboardInterrupt.
        once: Ignore the second signal. `torchrun` passes Ctrl-C on to processes that the terminal also sends it to.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def set_handlers(handler: Any) -> None:
        for number in _SIGNALS:
            signal.signal(number, handler)

    def first(number: int, frame: object) -> None:
        set_handlers(signal.SIG_IGN if once else signal.default_int_handler)
        assert stop is not None
        stop()

    before = [signal.getsignal(number) for number in _SIGNALS]
    set_handlers(signal.default_int_handler if stop is None else first)
    try:
        yield
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)
