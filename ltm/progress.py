"""Progress of long work, on stderr; results go to stdout.

On a terminal it is a bar. Elsewhere it is a line at once, then one every few seconds, so that a log, too, shows from
the start what is running, how fast, and how long it will take.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ltm.untrusted.display import printable

SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int, int], None]
"""Called with the number of rows done since the last call, and of tokens scored or drawn for them."""


def silent() -> bool:
    """True in all of several processes but the first, which speaks for them."""
    return os.environ.get("RANK", "0") != "0"


def say(text: str) -> None:
    """Print one line to stderr, in printable characters."""
    if silent():
        return
    print(printable(text), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Format a duration by its two largest units: `8 s`, `5 min 20 s`, `3 h 10 min`, `2 d 4 h`, `12 y 30 d`."""
    if not math.isfinite(seconds):
        return "unknown time"
    seconds = round(seconds)
    units = ((365 * 86400, "y"), (86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    for (size, name), (below, name_below) in itertools.pairwise(units):
        if seconds >= size:
            rest = seconds % size // below
            return f"{seconds // size:,} {name}{f' {rest} {name_below}' if rest else ''}"
    return f"{seconds} s"


def count(number: int, things: str) -> str:
    """Format a number of things, named in the plural, so that the two agree: `1 token`, `1,024 tokens`."""
    return f"{number:,} {things.removesuffix('es' if things.endswith('sses') else 's') if number == 1 else things}"


Show = Callable[[float, str], None]
"""Called with the share done, 0 to 1, and the facts to show next to it."""


@contextmanager
def display(title: str, *, transient: bool = False) -> Iterator[Show]:
    """Show a bar on a terminal, lines elsewhere, each with the time left."""
    if silent():
        yield lambda *_: None
        return
    from rich.console import Console

    console, began = Console(stderr=True), time.monotonic()
    first: float | None = None
    shown = -math.inf

    def left(share: float) -> str:
        # Resumed work starts beyond 0; the rate is measured from its first report.
        base = first or 0.0
        elapsed = time.monotonic() - began
        return duration(elapsed * (1 - share) / (share - base)) if share > base else "unknown time"

    if not console.is_terminal:

        def line(share: float, facts: str) -> None:
            nonlocal first, shown
            now = time.monotonic()
            if now - shown >= SECONDS_BETWEEN_LINES or share >= 1:
                remaining = f", {left(share)} left" if share < 1 else f", {duration(now - began)}"
                say(f"{title}: {share:.0%}, {facts}{remaining}")
                shown = now
            if first is None:
                first = share if share > 0.01 else 0.0

        yield line
        return

    from rich.markup import escape
    from rich.progress import BarColumn, Progress

    columns = ("{task.description}", BarColumn(), "{task.percentage:3.0f}%", "{task.fields[facts]}")
    with Progress(*columns, console=console, transient=transient) as bar:
        task = bar.add_task(escape(printable(title)), total=1.0, facts="")

        def move(share: float, facts: str) -> None:
            nonlocal first
            bar.update(task, completed=share, facts=f"{facts}, {left(share)} left" if share < 1 else facts)
            if first is None:
                first = share if share > 0.01 else 0.0

        yield move


@contextmanager
def training_progress(
    name: str, *, quiet: bool, tokens_per_step: int
) -> Iterator[Callable[[int, int | None, float, Mapping[str, float]], None]]:
    """Show loss, KL, tokens/s and time left of a training run; yields a callback.

    The callback takes (step, steps or None, share done, log).
    """
    if quiet:
        yield lambda *_: None
        return
    with display(name) as show:
        began, first = time.monotonic(), -1

        def report(step: int, total: int | None, share: float, log: Mapping[str, float]) -> None:
            nonlocal first
            first = step - 1 if first < 0 else first
            rate = (step - first) * tokens_per_step / (time.monotonic() - began)
            loss = f", loss {log['loss']:.3f}" if "loss" in log else ""
            kl = f", KL {log['kl_per_token']:.3f}" if "kl_per_token" in log else ""
            show(share, f"step {step:,}{f'/{total:,}' if total else ''}{loss}{kl}, {rate:,.0f} tokens/s")

        yield report


@contextmanager
def scoring_progress(title: str, *, rows: int, items: str = "blocks") -> Iterator[Advance]:
    """Show rows done, which are called `items`, tokens/s and time left of scoring or generating."""
    with display(title, transient=True) as show:
        done, tokens, began = 0, 0, time.monotonic()

        def advance(more_rows: int, more_tokens: int) -> None:
            nonlocal done, tokens
            done, tokens = done + more_rows, tokens + more_tokens
            rate = tokens / max(time.monotonic() - began, 1e-9)
            if done:
                show(done / max(rows, 1), f"{done:,}/{count(rows, items)}, {rate:,.0f} tokens/s")

        yield advance
