"""A tiny model of each family before the audit as users run it, sound or under the patch of a mutant."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import torch

from ltm import files
from ltm.errors import PREEMPTED
from ltm.result import find_results, read_records, read_result
from tasks import cli
from tasks.audit.checks.check import CheckResult
from tests.mutants import MUTANTS, Mutant, specimens, task_checks

PARTS = ("ltm", "baselines", "tasks", "tests/mutants")
"""The code that rows depend on."""

Row = dict[str, list[CheckResult]]
"""What each check said, of everything that claims to be a likelihood."""


def sound(subject: str) -> Row:
    """All checks of a sound subject; what it trains stays in the model store, for its mutants."""
    return _row(subject, contextlib.nullcontext)


def mutated(name: str) -> Row:
    """All checks of a mutant's subject, under its patch; it trains again only if the patch is for training too."""
    mutant = next(m for m in MUTANTS if m.name == name)
    return _row(mutant.subject, mutant.patch, mutant=mutant)


def refutations(row: Row) -> dict[str, CheckResult]:
    """The checks that refute something, each with the worst of what it found."""
    failed = {name: [found for found in own if found.passed is False] for name, own in row.items()}
    return {name: max(own, key=lambda found: _size(found.value)) for name, own in failed.items() if own}


def _size(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _row(subject: str, patch: Callable[[], contextlib.AbstractContextManager], mutant: Mutant | None = None) -> Row:
    torch.set_num_threads(1)
    if subject == "tasks":
        with patch():
            return {name: check() for name, check in task_checks.CHECKS.items()}
    small = specimens.sound(subject)
    with _apart(keep=mutant is None, trained=not (mutant and mutant.while_trained)), patch():
        # One block is enough to be refused: texts are read whole before any of it is scored.
        found = [_evaluated(subject, "pydocs", "--limit-blocks", "1", name="whole_text")]
        found += [*_audited(subject), *specimens.samples_follow_the_law(small)]
    row: Row = {}
    for result in found:
        # An estimate claims nothing, and has nothing to be refuted.
        if not (result.likelihood or "").endswith("_estimate"):
            row.setdefault(result.name, []).append(result)
    return row


@contextlib.contextmanager
def _apart(*, keep: bool, trained: bool) -> Iterator[None]:
    """A home of its own: answers are kept by what the code says, and a patch does not change that.

    Args:
        keep: what is trained stays for others.
        trained: what others have trained is there.
    """
    models = files.home() / "models"
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, {"LTM_HOME": folder}):
        if keep or trained:
            models.mkdir(parents=True, exist_ok=True)
            (Path(folder) / "models").symlink_to(models.resolve())
        yield


def _evaluated(subject: str, *arguments: str, name: str) -> CheckResult:
    """Run `ltm-eval`; refuted if it stops with an error, which is what it says."""
    said = io.StringIO()
    results = str(files.home() / "results")
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            options = ["--device", "cpu", "--output", results]
            code = cli.main(["--model", specimens.name_of(subject), *options, "--tasks", *arguments])
        except ValueError as error:
            code = print(error) or 2
    if code in (PREEMPTED, 130):  # broken off, which says nothing of the subject
        raise KeyboardInterrupt
    detail = said.getvalue().strip().splitlines()[-1:] or [""]
    return CheckResult(
        name=name, likelihood=None, passed=code == 0, value=math.nan, limit=math.nan, detail=detail[0] if code else ""
    )


def _audited(subject: str) -> Iterator[CheckResult]:
    stopped = _evaluated(subject, "audit", name="audit")
    if not stopped.passed:
        yield stopped
    for path in find_results(files.home() / "results"):
        for record in read_records(path, read_result(path)) or []:
            if record.get("part") == "check":
                yield _from_record(record)


def _from_record(record: dict) -> CheckResult:
    value, limit = (math.nan if record[part] is None else record[part] for part in ("value", "limit"))
    return CheckResult(
        name=record["check"],
        likelihood=record["likelihood"],
        passed=record["passed"],
        value=value,
        limit=limit,
        detail=record["detail"],
    )


def kept(compute: Callable[[str], Row], name: str, folder: Path) -> Row:
    """Compute a row, unless the folder has it from the same code."""
    path = folder / f"{compute.__name__}-{name}-{_code()}.json"
    if not path.exists():
        fields = ("name", "likelihood", "passed", "value", "limit", "detail")
        row = {check: [{f: getattr(found, f) for f in fields} for found in own] for check, own in compute(name).items()}
        files.write_atomically(path, json.dumps(row, indent=1).encode())
    return {check: [CheckResult(**found) for found in own] for check, own in json.loads(path.read_text()).items()}


@functools.cache
def _code() -> str:
    root = Path(__file__).parents[2]
    sources = sorted(path for part in PARTS for path in (root / part).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
