"""Signals that ask a run to stop: the current update is finished first."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Let the current update finish on the first Ctrl-C or SIGTERM; another, a second or more later, stops at once.

    Not sooner, since torchrun forwards to its processes the Ctrl-C that the terminal has already sent them.
    """
    asked: list[float] = []

    def ask(number: int, frame: Any) -> None:
        if asked and time.monotonic() - asked[0] > 1:
            raise KeyboardInterrupt
        asked.append(time.monotonic())

    try:
        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, which owns the signals
        before = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
