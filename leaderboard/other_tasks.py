"""Results that are no perplexities, such as accuracies: a table for each task on one text, without ranks."""

from __future__ import annotations

from collections.abc import Sequence

from leaderboard import signs
from leaderboard.store import Entry, legible, tell_apart
from leaderboard.text_table import Table
from ltm.result import Cell, Metric


def title(entries: Sequence[Entry]) -> str:
    """The task and its version."""
    task = entries[0].cell.task
    return f"{task['name']} version {task['version']}"


def caption(entries: Sequence[Entry]) -> str:
    """Which text it is on."""
    cell = entries[0].cell
    data = cell.data
    return f"{data['corpus']} {cell.task['split']} (text {data['fingerprint'][:8]}): {data['documents']:,} documents"


def table(entries: Sequence[Entry]) -> Table:
    """A row a metric, a column a result."""
    entries = in_order(entries)
    names = list(dict.fromkeys((m.name, m.likelihood) for entry in entries for m in _headline_first(entry.cell)))
    rows = []
    for name, likelihood in names:
        found = [
            next((m for m in e.cell.metrics if (m.name, m.likelihood) == (name, likelihood)), None) for e in entries
        ]
        label = name if likelihood is None else f"{name} ({likelihood})"
        rows.append((label, *(signs.value_and_error([metric]) for metric in found)))
    return Table(header=("Metric", *labels(entries)), rows=tuple(rows))


def brief_table(entries: Sequence[Entry]) -> Table:
    """A row a result, with what it is judged by."""
    entries = in_order(entries)
    rows = []
    for entry, label in zip(entries, labels(entries), strict=True):
        metric, cell = judged_by(entry.cell), entry.cell
        rows.append(
            (
                label,
                metric.name,
                signs.value_and_error([metric]),
                str(metric.n),
                signs.short(cell.provenance["tokens_per_second"]),
            )
        )
    return Table(header=("Model", "Metric", "Value", "n", "Tokens/s"), rows=(*rows, *_chance_rows(entries)))


def _chance_rows(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """What blind guessing gets by the same metric, as the results carry it: `chance_constants_pass@5`. Best first."""
    found: dict[tuple[str, ...], float] = {}
    for entry in entries:
        judged = judged_by(entry.cell).name
        for metric in entry.cell.metrics:
            if metric.name.startswith("chance_") and metric.name.endswith(f"_{judged}"):
                name = metric.name.removeprefix("chance_").removesuffix(f"_{judged}")
                row = (f"chance: {name}", judged, signs.value_and_error([metric]), str(metric.n), signs.NOTHING)
                found[row] = metric.value if metric.direction == "lower" else -metric.value
    return sorted(found, key=lambda row: (found[row], row))


def judged_by(cell: Cell) -> Metric:
    """The first headline metric, or the first of all."""
    return _headline_first(cell)[0]


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """The best first, by what they are judged by; ties by file."""

    def order(entry: Entry) -> tuple[str, float, str]:
        metric = judged_by(entry.cell)
        return metric.name, metric.value if metric.direction == "lower" else -metric.value, str(entry.path)

    return sorted(entries, key=order)


def labels(entries: Sequence[Entry]) -> list[str]:
    """The models' names, with what tells results of the same name apart."""
    identities = [
        {**legible(e.cell), "training seed": e.cell.training["seed"], "seed": e.cell.scoring["seed"]} for e in entries
    ]
    return tell_apart([entry.cell.model["name"] for entry in entries], identities)


def _headline_first(cell: Cell) -> list[Metric]:
    return sorted(cell.metrics, key=lambda metric: not metric.headline)
