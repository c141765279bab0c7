"""Every mutant before every check, and sound models too: `python -m tests.mutants.matrix --write` renews the tables
of docs/validity.md.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

from ltm.errors import UserError
from tasks.audit.checks import enumeration
from tasks.audit.checks.check import CheckResult
from tests.mutants import MUTANTS, Mutant, latent, networks, pipeline, specimens, task_checks

assert latent and networks and pipeline  # each adds its mutants
DOCUMENT = Path(__file__).parents[2] / "docs" / "validity.md"
BEGIN, END = "<!-- mutants:begin -->", "<!-- mutants:end -->"
SOUND = "none: sound"
NOT_CAUGHT = "·"
NEAR = "±"
"""A verdict so near its limit that another machine may find another."""
CAUGHT = [mutant for mutant in MUTANTS if not mutant.escapes]
ESCAPING = [mutant for mutant in MUTANTS if mutant.escapes]
TITLES = {
    **{name: name.replace("_", " ") for name in (*specimens.CHECKS, *task_checks.CHECKS)},
    "known_source_64_steps": "the same, 64 steps",
}

Row = dict[str, list[CheckResult]]
"""What each check said, of everything that claims to be a likelihood."""


@contextlib.contextmanager
def _apart(subject: str) -> Iterator[None]:
    """Answers are kept by what the code says, and a patch does not change that: so nothing is kept between rows."""
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory())
        stack.enter_context(mock.patch.dict(os.environ, {"LTM_HOME": home}))
        for name, value in (specimens.SIZES | specimens.SIZES_OF.get(subject, {})).items():
            stack.enter_context(mock.patch.object(enumeration, name, value))
        yield


def _asked(name: str, check: Callable[[], Sequence[CheckResult]]) -> list[CheckResult]:
    try:
        # An estimate claims nothing, and has nothing to be refuted.
        return [found for found in check() if not (found.likelihood or "").endswith("_estimate")]
    except (UserError, ValueError) as error:
        said = str(error)
        return [CheckResult(name=name, likelihood=None, passed=False, value=math.nan, limit=math.nan, detail=said)]


def _checks(subject: str, *, train: bool = False) -> Row:
    if subject == "tasks":
        return {name: _asked(name, check) for name, check in task_checks.CHECKS.items()}
    s = specimens.specimen(subject) if train else specimens.sound(subject)
    return {name: _asked(name, functools.partial(check, s)) for name, check in specimens.CHECKS.items()}


def mutated(mutant: Mutant) -> Row:
    """All checks of a mutant's subject, under its patch."""
    with _apart(mutant.subject):
        if mutant.subject != "tasks":
            _ = specimens.sound("ngram"), mutant.while_trained or specimens.sound(mutant.subject)
        with mutant.patch():
            return _checks(mutant.subject, train=mutant.while_trained)


def sound(subject: str) -> Row:
    """All checks of a sound subject."""
    with _apart(subject):
        return _checks(subject)


def refutations(row: Row) -> dict[str, CheckResult]:
    """The checks that refute something, each with the worst of what it found."""
    failed = {name: [found for found in own if found.passed is False] for name, own in row.items()}
    return {name: max(own, key=lambda found: _size(found.value)) for name, own in failed.items() if own}


def close(row: Row, name: str) -> bool:
    """Whether a verdict is so near the limit that another machine's rounding may turn it: within a tenth.

    How far a text in the cache is from the text that was asked for is no quantity that a limit was set for, and which
    weights a machine's training ends at moves it: there, within a factor of ten.
    """
    values = [(found.value, found.limit) for found in row[name] if found.passed is not None]
    if name == "depends_on_weights":
        return any(limit < value < 10 * limit for value, limit in values)
    return any(limit and abs(value / limit - 1) < 0.1 and abs(value - limit) > 1e-3 for value, limit in values)


def _size(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _figure(found: CheckResult) -> str:
    value = found.value
    if math.isnan(value) or found.name in ("accounting", "depends_on_weights", "prompts", "answers", "rates"):
        return "seen"
    if found.name.startswith("known_source"):
        return f"{value:,.0f} nats"
    if found.name in ("samples_follow_the_law", "peaked_draws"):
        return f"p = {value:.0e}"
    return (
        f"{value:.2g}×"
        if found.name == "stated_error"
        else f"{value:.0e}"
        if value >= 1e5
        else f"{value:.{5 if 0.99 < value < 1.01 else 3}g}"
    )


def _cells(row: Row, caught: Mapping[str, CheckResult], columns: Sequence[str]) -> list[str]:
    cells = []
    for name in columns:
        looked = any(found.passed is not None for found in row[name])
        verdict = _figure(caught[name]) if name in caught else NOT_CAUGHT if looked else ""
        cells.append(NEAR if name == "depends_on_weights" and close(row, name) else verdict)
    return cells


def _alarms(rows: Mapping[str, Row], columns: Sequence[str]) -> list[str]:
    cells = []
    for name in columns:
        looked = [own for own in rows.values() if any(found.passed is not None for found in own[name])]
        cells.append(f"{sum(name in refutations(own) for own in looked)} of {len(looked)}")
    return cells


def tables(sound_rows: Mapping[str, Row], mutant_rows: Mapping[str, Row]) -> str:
    """The tables in Markdown: of likelihoods, of what is none, and of what escapes."""
    parts = []
    for of_tasks, checks in ((False, specimens.CHECKS), (True, task_checks.CHECKS)):
        columns, own = list(checks), [m for m in CAUGHT if (m.subject == "tasks") == of_tasks]
        rows = {name: row for name, row in sound_rows.items() if (name == "tasks") == of_tasks}
        lines = [["Mutant", "In", *(TITLES[name] for name in columns)]]
        lines.append(["---", "---", *["---:"] * len(columns)])
        lines.append([f"*{SOUND}*", "" if of_tasks else f"{len(rows)} specimens", *_alarms(rows, columns)])
        catches = dict.fromkeys(columns, 0)
        for mutant in own:
            caught = refutations(mutant_rows[mutant.name])
            for name in caught:
                catches[name] += 1
            lines.append([mutant.description, mutant.subject, *_cells(mutant_rows[mutant.name], caught, columns)])
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        idle = [TITLES[name] for name, count in catches.items() if not count]
        parts.append(f"Checks in this table that caught nothing: {', '.join(idle) or 'none'}.")
    parts.append("Too small for every check, measured like the others:")
    rows_of_escapes = [f"| {m.description} | {m.subject} | {m.escapes} |" for m in ESCAPING]
    parts.append("\n".join(["| Escapes | In | Because |", "| --- | --- | --- |", *rows_of_escapes]))
    return "\n\n".join(parts)


def verdicts(block: str) -> dict[tuple[str, str], bool | None]:
    """Read tables: whether each check, by its title, caught each mutant, by what it says; None where that was near."""
    found: dict[tuple[str, str], bool | None] = {}
    header: list[str] = []
    for line in block.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or cells[0] == "---":
            continue
        if cells[0] in ("Mutant", "Escapes"):
            header = cells if cells[0] == "Mutant" else []
        elif not header:
            continue
        elif not cells[0].startswith("*"):
            pairs = zip(header[2:], cells[2:], strict=True)
            found |= {
                (cells[0], title): None if cell == NEAR else cell not in ("", NOT_CAUGHT) for title, cell in pairs
            }
    return found


def written() -> str:
    """What the document has between the marks."""
    return DOCUMENT.read_text().split(BEGIN)[1].split(END)[0].strip()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables, or write them into the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="renew the tables in docs/validity.md")
    parser.add_argument("--only", default="", help="mutants whose name has this in it, with what was found")
    options = parser.parse_args(arguments)
    if options.only:
        for mutant in MUTANTS:
            if options.only in mutant.name:
                caught = refutations(mutated(mutant))
                print(mutant.name, *(f"  {n}: {f.likelihood or ''} {f.detail}" for n, f in caught.items()), sep="\n")
        return
    rows = {name: sound(name) for name in (*specimens.FAMILIES, "tasks")}
    block = tables(rows, {mutant.name: mutated(mutant) for mutant in CAUGHT})
    if options.write:
        from ltm.files import write_atomically

        before, rest = DOCUMENT.read_text().split(BEGIN)
        text = f"{before}{BEGIN}\n{block}\n{END}{rest.split(END)[1]}"
        write_atomically(DOCUMENT, text.encode())
    else:
        print(block)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    main()
