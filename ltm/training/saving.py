"""Checkpoints written while training goes on: a copy of the tensors is made at once, and written by another thread."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from torch import Tensor


class BackgroundSaver:
    """Writes one checkpoint at a time, each whole or not at all; as a context manager, it ends when all is written."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[Path] | None = None

    def __enter__(self) -> BackgroundSaver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        if error is None:
            self.wait()

    def start(self, write: Callable[[], Path]) -> None:
        """Begin to write, once the checkpoint before is written.

        Raises:
            UserError: that one could not be written.
        """
        self.wait()
        self._writing = self._pool.submit(write)

    def wait(self) -> None:
        """Return when nothing is being written. Raises what went wrong with it."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def check(self) -> None:
        """Raise what went wrong, if something has by now."""
        if self._writing is not None and self._writing.done():
            self.wait()


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy on the CPU, which later updates leave alone."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
