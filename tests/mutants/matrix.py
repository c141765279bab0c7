"""Every mutant before the whole audit, and sound models too: `make mutants` prints the tables of docs/validity.md, and
`python -m tests.mutants.matrix --write` renews them.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ltm.files import write_atomically
from tasks.audit.checks.check import CheckResult
from tests.mutants import MUTANTS, Mutant, audited, diffusion, importance, latent, networks, pipeline, specimens
from tests.mutants.audited import Row, refutations

assert diffusion and importance and latent and networks and pipeline  # each adds its mutants
ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "validity.md"
BEGIN, END = "<!-- mutants:begin -->", "<!-- mutants:end -->"
SOUND, REFUTED_BY = "Sound models that it refuted", "Refuted by"
NOTHING, NOT_RUN = "nothing", "not run yet"
CAUGHT = [mutant for mutant in MUTANTS if not mutant.escapes]
ESCAPING = [mutant for mutant in MUTANTS if mutant.escapes]
SUBJECTS = (*specimens.FAMILIES, "tasks")
SIZES = "Sizes: each family's tiny preset on `pydocs`, and the audit's own."


def sample() -> list[Mutant]:
    """Two mutants for each check to catch, the quickest; the tests show these."""
    chosen: dict[str, list[Mutant]] = {}
    for mutant in sorted(CAUGHT, key=lambda mutant: (mutant.subject == "ltm", mutant.while_trained)):
        chosen.setdefault(mutant.caught_by, []).append(mutant)
    return [mutant for own in chosen.values() for mutant in own[:2]]


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


def _refuted_by(row: Row) -> str:
    caught = refutations(row)
    return ", ".join(f"{name.replace('_', ' ')} {_figure(found)}" for name, found in caught.items()) or NOTHING


def _sound_lines(rows: Mapping[str, Row]) -> Iterator[str]:
    """Yield a line for each check, in the order of the audit: how many of the models that it looked at it refuted."""
    for name in dict.fromkeys(name for row in rows.values() for name in row):
        looked = [row for row in rows.values() if any(found.passed is not None for found in row.get(name, []))]
        if looked:
            refuted = sum(name in refutations(row) for row in looked)
            yield _row(name.replace("_", " "), f"{refuted} of {len(looked)}")


def tables(sound_rows: Mapping[str, Row], mutant_rows: Mapping[str, Row]) -> str:
    """The tables in Markdown: of sound models, of mutants, and of what escapes.

    What was not made now keeps the line that the document has.
    """
    standing = written().splitlines()
    sound = list(_sound_lines(sound_rows)) if set(sound_rows) == set(SUBJECTS) else _lines(standing, "Check", SOUND)
    lines = {tuple(_cells(line)[:2]): line for line in _lines(standing, "Mutant", "In", REFUTED_BY)}
    for mutant in CAUGHT:
        key = mutant.description, mutant.subject
        if mutant.name in mutant_rows:
            lines[key] = _row(*key, _refuted_by(mutant_rows[mutant.name]))
    caught = (lines.get((m.description, m.subject)) or _row(m.description, m.subject, NOT_RUN) for m in CAUGHT)
    escaping = (_row(m.description, m.subject, m.escapes) for m in ESCAPING)
    return "\n\n".join(
        [
            SIZES,
            "\n".join([_row("Check", SOUND), "| --- | ---: |", *sound]),
            "\n".join([_row("Mutant", "In", REFUTED_BY), "| --- | --- | --- |", *caught]),
            "Too small for every check, measured like the others:",
            "\n".join([_row("Escapes", "In", "Because"), "| --- | --- | --- |", *escaping]),
        ]
    )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cells(line: str) -> list[str]:
    return line.strip("| ").split(" | ")


def _lines(text: Sequence[str], *header: str) -> list[str]:
    """The lines of the table with a header."""
    rest = text[text.index(_row(*header)) + 2 :]
    return list(itertools.takewhile(lambda line: line.startswith("|"), rest))


def written() -> str:
    """What the document has between the marks."""
    return DOCUMENT.read_text().split(BEGIN)[1].split(END)[0].strip()


def surprises(sound_rows: Mapping[str, Row], mutant_rows: Mapping[str, Row]) -> Iterator[str]:
    """Yield a line for each sound subject that is refuted, each mutant that is not, and each that no longer escapes."""
    for name, row in sound_rows.items():
        for check, found in refutations(row).items():
            yield f"{name} is sound, and refuted by {check}: {found.detail}"
    for mutant in MUTANTS:
        caught = refutations(mutant_rows.get(mutant.name, {}))
        if mutant.name in mutant_rows and bool(caught) == bool(mutant.escapes):
            yield f"{mutant.name} {'no longer escapes: ' + ', '.join(caught) if caught else 'is not refuted'}"


def _computed(compute: Callable[[str], Row], names: Sequence[str], options: argparse.Namespace) -> dict[str, Row]:
    """Compute rows, each in a process of its own: nothing of a patch is left for the next."""
    rows: dict[str, Row] = {}
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        work = functools.partial(_named, compute, folder=options.rows)
        for name, row in pool.imap_unordered(work, names):
            rows[name] = row
            caught = ", ".join(refutations(row)) or "nothing refuted"
            print(f"{len(rows)} of {len(names)}: {name}: {caught}", file=sys.stderr, flush=True)
    return {name: rows[name] for name in names}


def _named(compute: Callable[[str], Row], name: str, *, folder: Path) -> tuple[str, Row]:
    return name, audited.kept(compute, name, folder)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables, or write them into the document; 1 if anything is refuted, or not, that should be otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="renew what was made in docs/validity.md")
    parser.add_argument("--only", default="", help="mutants whose name has this in it; several with commas")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="rows at a time; default: one per core")
    default = ROOT / "demo" / "mutants"
    parser.add_argument("--rows", type=Path, default=default, help="where rows are kept; default: demo/mutants")
    options = parser.parse_args(arguments)
    chosen = [m for m in MUTANTS if any(part in m.name for part in options.only.split(","))]
    subjects = [name for name in SUBJECTS if not options.only or any(m.subject == name for m in chosen)]
    # First, since a sound subject trains what its mutants are scored with.
    sound = _computed(audited.sound, subjects, options)
    rows = _computed(audited.mutated, [m.name for m in chosen], options)
    if options.only:
        for name, row in rows.items():
            print(
                name,
                *(f"  {check}: {f.likelihood or ''} {f.detail}" for check, f in refutations(row).items()),
                sep="\n",
            )
    if options.write:
        before, rest = DOCUMENT.read_text().split(BEGIN)
        write_atomically(DOCUMENT, f"{before}{BEGIN}\n{tables(sound, rows)}\n{END}{rest.split(END)[1]}".encode())
    elif not options.only:
        print(tables(sound, rows))
    unexpected = list(surprises(sound, rows))
    print(*unexpected, sep="\n", file=sys.stderr)
    return int(bool(unexpected))


if __name__ == "__main__":
    raise SystemExit(main())
