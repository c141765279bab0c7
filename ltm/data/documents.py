"""Documents that are read from their files each time one goes through them, and never held together."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from ltm.errors import UserError
from ltm.files import Stamp, stamp
from ltm.untrusted.display import printable


class Documents(Sequence[str]):
    """A sequence of documents in files: it takes the memory of one document, and a reading for each pass or index.

    Args:
        read: starts a new reading, from the first document.
        files: the files that are read. If one of them changes after this was made, reading stops.
        of: what `read` reads in turn.

    Attributes:
        stamps: of all files as they were when this was made.
    """

    def __init__(self, read: Callable[[], Iterator[str]], *, files: Sequence[Path] = (), of: Sequence[Documents] = ()):
        self._read = read
        self._files = {file: _stamp(file) for file in files}
        self.stamps: list[Stamp] = [*self._files.values(), *(one for part in of for one in part.stamps)]

    @cached_property
    def _count(self) -> int:
        return sum(1 for _ in self)

    def counted(self, count: int) -> Documents:
        """Note the number of documents, so that nobody has to count; returns self."""
        self._count = count
        return self

    def __iter__(self) -> Iterator[str]:
        """Read all documents.

        Raises:
            UserError: a file changed since this was made.
        """
        self._check()
        yield from self._read()
        self._check()

    def _check(self) -> None:
        for file, before in self._files.items():
            if _stamp(file) != before:
                name = printable(str(file), keep=frozenset())
                raise UserError(f"{name} was written to while it was in use; repeat the command once it is complete")

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Documents: ...

    def __getitem__(self, index: int | slice) -> str | Documents:
        if isinstance(index, slice):
            return self._part(index)
        if index < 0:
            index += len(self)
        found = next(itertools.islice(self, index, None), None) if index >= 0 else None
        if found is None:
            raise IndexError(index)
        return found

    def _part(self, index: slice) -> Documents:
        if (index.step or 1) != 1:
            raise ValueError("documents in files are read in order")
        forward = all(bound is None or bound >= 0 for bound in (index.start, index.stop))
        start, stop = (index.start or 0, index.stop) if forward else index.indices(len(self))[:2]
        part = Documents(lambda: itertools.islice(self, start, stop), of=[self])
        return part if forward else part.counted(max(0, stop - start))

    def map(self, change: Callable[[str], str]) -> Documents:
        """Return the documents as `change` makes them."""
        mapped = Documents(lambda: map(change, self), of=[self])
        return mapped.counted(self._count) if "_count" in vars(self) else mapped

    def __eq__(self, other: Any) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Documents({next(iter(self), '')[:40]!r}, ...)"


def chained(parts: Iterable[Documents]) -> Documents:
    """Return the documents of all parts, one part after the other."""
    parts = tuple(parts)
    return Documents(lambda: itertools.chain.from_iterable(parts), of=parts)


def _stamp(file: Path) -> Stamp:
    try:
        return stamp(os.stat(file))
    except OSError as error:
        name = printable(str(file), keep=frozenset())
        raise UserError(f"cannot read {name}: {error.strerror or error}") from error
