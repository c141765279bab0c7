"""User errors, reported in one line with the remedy, and the exit codes of the commands."""

from __future__ import annotations

import difflib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ltm.untrusted.display import SHOWN, printable, shown

_NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


PREEMPTED = 75
"""The exit code of a command that a scheduler stopped (EX_TEMPFAIL): the same command goes on from what is kept."""
PREEMPTING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""The signals by which schedulers announce that they will kill a job."""


class Preempted(KeyboardInterrupt):
    """A scheduler asked the command to stop."""


class UserError(Exception):
    """Bad input: the message says what was wrong, what was expected, and how to fix it.

    Messages quote what others have written, so they hold printable characters only, wherever they are printed.
    """

    def __init__(self, message: str = ""):
        super().__init__(printable(message))


def did_you_mean(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Make the error for an unknown `name`, which suggests the nearest `known` ones or lists all.

    Case is ignored, and the last part of a dotted name may match alone: `lr` finds `training.lr`. The similarity of
    the whole dotted name breaks ties.
    """
    known = sorted(known)
    likeness = {candidate: _likeness(name[:SHOWN].lower(), candidate.lower()) for candidate in known}
    close = [c for c in sorted(known, key=lambda c: likeness[c], reverse=True) if likeness[c] >= (0.5,)][:3]
    hint = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known) or 'none'}"
    return UserError(f"unknown {kind} {shown(name)}; {hint}")


def _likeness(name: str, candidate: str) -> tuple[float, float]:
    pairs = ((name, candidate), (name.rpartition(".")[2], candidate.rpartition(".")[2]))
    whole, last = (difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs)
    return max(whole, last), whole if "." in name else 0.0


def out_of_memory(error: BaseException) -> bool:
    """True if `error` says that memory could not be had: on a GPU, in torch on a CPU, or in Python itself."""
    # By name, since torch is not imported for this.
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY))
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or what kind of error it is."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def run_command(main: Callable[[], int | None]) -> int:
    """Run a command line: 0 when done, 2 for a user's mistake or no room or memory, 130 for Ctrl-C, 75 for SIGTERM.

    There is no traceback. SIGUSR1 is taken as SIGTERM is.

    `LTM_TRACEBACK=1` shows the traceback of a `UserError`, for debugging the suite itself.
    """
    # Before torch is imported: threads that wait for each other spin this long, then sleep. By default they spin thirty
    # times longer, and next to another busy program small models then run at a twentieth of their speed.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # torch would warn, in every process, that a family uses all of its parameters.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A question mark for what a terminal cannot show, such as ≤, and for names of files that are no text.
        with suppress(OSError):  # of a descriptor that became a pipe after Python had opened a file there
            sys.stdout.reconfigure(errors="replace")
    try:
        with _preemptible():
            code = main() or 0
        sys.stdout.flush()  # while a reader that has gone, or a full disk, can still be answered
        return code
    except UserError as error:
        if os.environ.get("LTM_TRACEBACK"):
            raise
        print(f"{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error) or os.environ.get("LTM_TRACEBACK"):
            raise
        print(
            f"{os.path.basename(sys.argv[0])}: error: out of memory: {first_line(error)}. Finished work is kept. Try a "
            "smaller batch (ltm-eval --batch-size 1; ltm-train --set training.batch=B, with training.accumulation "
            "raised to match), another --device, or a smaller model",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt as interrupt:
        detail = str(interrupt) or "finished work is kept; issue the same command again to go on"
        how = "stopped" if isinstance(interrupt, Preempted) else "interrupted"
        print(f"\n{os.path.basename(sys.argv[0])}: {how}: {detail}", file=sys.stderr)
        return PREEMPTED if isinstance(interrupt, Preempted) else 130
    except BrokenPipeError:
        _discard_output()  # the reader (head, less) has gone
        return 0
    except OSError as error:
        if error.errno not in _NO_ROOM or os.environ.get("LTM_TRACEBACK"):
            raise
        place = f" at {error.filename}" if error.filename else ""
        print(
            f"{os.path.basename(sys.argv[0])}: error: {error.strerror}{place}; finished work is kept: make room, then "
            "issue the same command again",
            file=sys.stderr,
        )
        _discard_output()
        return 2


@contextmanager
def _preemptible() -> Iterator[None]:
    """End the block by `Preempted` when a scheduler asks for it."""
    own = os.getpid()

    def stop(number: int, frame: Any) -> None:
        if os.getpid() == own:
            raise Preempted
        signal.signal(number, signal.SIG_DFL)  # a worker that was forked from this process ends as others do
        os.kill(os.getpid(), number)

    try:
        before = {number: signal.signal(number, stop) for number in PREEMPTING}
    except ValueError:  # not in the main thread, which owns the signals
        before = {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _discard_output() -> None:
    """Let what remains to be printed go nowhere, so that the interpreter can end without another error."""
    with suppress(OSError):  # standard output may be no file, as in a notebook
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
