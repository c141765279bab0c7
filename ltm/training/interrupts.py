"""Signals that ask a run to stop: the current update is finished first."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ltm.errors import PREEMPTING, Preempted


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], int]]:
    """Let the current update finish on Ctrl-C, SIGTERM or SIGUSR1; yields what tells which signal came, or 0.

    Another Ctrl-C, a second or more later, stops at once. Not sooner, since torchrun forwards to its processes the
    Ctrl-C that the terminal has already sent them.
    """
    asked: list[tuple[float, int]] = []

    def ask(number: int, frame: Any) -> None:
        if number == signal.SIGINT and asked and time.monotonic() - asked[0][0] > 1:
            raise KeyboardInterrupt
        asked.append((time.monotonic(), number))

    try:
        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, *PREEMPTING)}
    except ValueError:  # not in the main thread, which owns the signals
        before = {}
    try:
        yield lambda: asked[0][1] if asked else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stopped(number: int, step: int) -> KeyboardInterrupt:
    """What ends a run that was asked by this signal to stop, and is saved."""
    kind = KeyboardInterrupt if number == signal.SIGINT else Preempted
    return kind(f"step {step} is saved; issue the same command again to go on")
