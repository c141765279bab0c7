"""What the person at the terminal sees of a training run; results go to stdout, this goes to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def say(text: str) -> None:
    """One line."""
    print(text, file=sys.stderr, flush=True)


class progress_report:
    """A bar with loss, tokens/s and time left on a terminal; ten plain lines a run elsewhere."""

    def __init__(self, name: str, *, quiet: bool, tokens_a_step: int):
        self.name, self.quiet, self.tokens_a_step = name, quiet, tokens_a_step

    def __enter__(self) -> Callable[[int, int | None, float, Mapping[str, float]], None]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self.bar: Progress | None = None
        if self.quiet:
            return lambda *_: None
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"),
                TextColumn("{task.fields[facts]}"), TimeRemainingColumn(), console=console,
            )  # fmt: skip
            self.bar.start()
            task = self.bar.add_task(self.name, total=1.0, facts="")
        started, first, shown = time.monotonic(), -1, 0

        def report(step: int, total: int | None, progress: float, log: Mapping[str, float]) -> None:
            nonlocal first, shown
            first = step - 1 if first < 0 else first
            speed = (step - first) * self.tokens_a_step / (time.monotonic() - started)
            loss = f", loss {log['loss']:.3f}" if "loss" in log else ""
            kl = f", KL {log['kl_per_token']:.3f}" if "kl_per_token" in log else ""
            facts = f"step {step:,}{f'/{total:,}' if total else ''}{loss}{kl}, {speed:,.0f} tokens/s"
            if self.bar is not None:
                self.bar.update(task, completed=progress, facts=facts)
            elif int(progress * 10) > shown:
                shown = int(progress * 10)
                say(f"{self.name}: {progress:.0%}, {facts}")

        return report

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()
