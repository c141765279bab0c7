"""Results other than perplexities: a table for each task on one text, and curves of diagnostics."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from leaderboard.content import generation_views, notation, reported
from leaderboard.content.document import NOTHING, Axis, Figure, Part, Point, Series, Table, Value, slug
from leaderboard.entries import Entry
from leaderboard.labels import labels
from leaderboard.ranking import judged_by
from ltm.progress import count
from ltm.result import Metric, Result, computing_from_records, read_records
from ltm.statistics import mean_and_error

_BOUNDS, _UPPER = ("elbo", "importance_bound"), "tube_upper_bound"
REFERENCE = ("chance", "human", "shuffled")
"""First words of metrics that are not the model's: `human_...`, and `chance_NAME_...` for the chance model NAME."""
OWN = ""
"""The owner of the model's own metrics."""


def parts(entries: Sequence[Entry], title: str) -> list[Part]:
    """Return all parts on the results of a task on one text."""
    whole = Part(
        title=title,
        text=(f"{caption(entries)}.", *generation_views.notes(entries)),
        figures=tuple(generation_views.figures(entries, _figure_prefix(entries))),
        table=table(entries),
    )
    curves = (_curve(entries, "steps", "Fast steps"), _curve(entries, "latents", "Latent vectors"))
    return [whole, *(curve for curve in curves if curve is not None)]


def caption(entries: Sequence[Entry]) -> str:
    """Return a line on the version of the task and on its text."""
    task, data = entries[0].result.task, entries[0].result.data
    return (
        f"{task['name']} version {task['version']}, {data['corpus']} {task['split']} "
        f"(text {data['fingerprint'][:8]}): {count(data['documents'], 'documents')}"
    )


def table(entries: Sequence[Entry]) -> Table:
    """Return a row per result, the best first, and a column per metric, then rows of chance models and human text.

    Numbers that papers report for the task are in the reported rows, converted from per cent to shares.
    """
    entries = in_order(entries)
    by_owner = [_by_owner(entry.result) for entry in entries]
    columns: dict[str, Metric] = {}
    for metrics in by_owner:
        for name, metric in metrics[OWN].items():
            columns.setdefault(name, metric)
    columns = dict(sorted(columns.items(), key=lambda item: (not item[1].headline, not item[0].startswith("gen_ppl["))))
    several = len(generation_views.judges(columns)) > 1  # a single one is named in the note
    arrows = {"lower": "↓", "higher": "↑"}
    task = entries[0].result.task["name"]
    return Table(
        header=(
            "Model",
            *(
                f"{generation_views.metric_title(name, judge=several)} {arrows[metric.direction]}"
                for name, metric in columns.items()
            ),
            "n",
            "Tokens/s",
        ),
        rows=(
            *(
                (
                    label,
                    *(_value(entry, metrics[OWN].get(name)) for name in columns),
                    str(judged_by(entry.result).n),
                    notation.short(entry.result.provenance["tokens_per_second"]),
                )
                for label, entry, metrics in zip(labels(entries), entries, by_owner, strict=True)
            ),
            *(
                (owner, *(notation.value_and_error([metrics.get(name)]) for name in columns), NOTHING, NOTHING)
                for owner, metrics in _reference_rows(by_owner)
            ),
        ),
        reported=tuple(
            (paper.label, *(_share(paper, task, name) for name in columns), NOTHING, NOTHING)
            for paper in reported.gsm8k()
            if paper.values.get(task)
        ),
    )


def _share(paper: reported.Reported, task: str, name: str) -> str:
    value = paper.values[task] if name == "pass@5_legacy_substring" else None
    return f"{float(value) / 100:.3f}" if value else NOTHING


def _value(entry: Entry, metric: Metric | None) -> str | Value:
    text = notation.value_and_error([metric])
    return notation.with_tooltip(text, [entry], [metric]) if metric is not None and metric.headline else text


def _named(result: Result) -> dict[str, Metric]:
    """Metrics by name, followed by the likelihood where several have the same name."""
    counts = Counter(metric.name for metric in result.metrics)
    return {m.name if counts[m.name] == 1 else f"{m.name} ({m.likelihood})": m for m in result.metrics}


def _by_owner(result: Result) -> dict[str, dict[str, Metric]]:
    """Metrics by owner, which is `OWN` or the label of another row, and by their name there."""
    by_owner: dict[str, dict[str, Metric]] = {OWN: {}}
    for name, metric in _named(result).items():
        owner, name_there = _owner(name)
        by_owner.setdefault(owner, {})[name_there] = metric
    return by_owner


def _reference_rows(by_owner: Sequence[Mapping[str, Mapping[str, Metric]]]) -> list[tuple[str, Mapping[str, Metric]]]:
    # Human text scores differently under each tokenizer, so each set of values gets a row.
    distinct: dict[tuple[str, ...], Mapping[str, Metric]] = {}
    for metrics_by_owner in by_owner:
        for owner, metrics in metrics_by_owner.items():
            if owner != OWN:
                key = (owner, *(f"{name} {metric.value!r}" for name, metric in metrics.items()))
                distinct.setdefault(key, metrics)
    return [(key[0], distinct[key]) for key in sorted(distinct)]


def _owner(name: str) -> tuple[str, str]:
    """Split a metric's name into its owner and its name there: `chance: constants` owns `chance_constants_pass@5`."""
    first, _, rest = name.partition("_")
    if first not in REFERENCE:
        return OWN, name
    if first != "chance":
        return {"human": "human text", "shuffled": "human text, words shuffled"}[first], rest
    guesser, _, rest = rest.partition("_")
    return f"chance: {guesser}", rest


def brief_table(entries: Sequence[Entry]) -> Table:
    """Return a row per result with the metric that it is judged by, then the chance models by the same."""
    entries = in_order(entries)
    rows = []
    for entry, label in zip(entries, labels(entries), strict=True):
        metric, result = judged_by(entry.result), entry.result
        rows.append(
            (
                label,
                generation_views.metric_title(metric.name, judge=False),
                notation.value_and_error([metric]),
                str(metric.n),
                notation.short(result.provenance["tokens_per_second"]),
            )
        )
    return Table(header=("Model", "Metric", "Value", "n", "Tokens/s"), rows=(*rows, *_chance_rows(entries)))


def _chance_rows(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """The chance models' values of the metric that models are judged by, as the results carry them, best first."""
    badness: dict[tuple[str, ...], float] = {}
    for entry in entries:
        judged = judged_by(entry.result).name
        for metric in entry.result.metrics:
            owner, name = _owner(metric.name)
            if owner.startswith("chance") and name == judged:
                row = (owner, judged, notation.value_and_error([metric]), str(metric.n), NOTHING)
                badness[row] = _badness(metric)
    return sorted(badness, key=lambda row: (badness[row], row))


def _badness(metric: Metric) -> float:
    return metric.value if metric.direction == "lower" else -metric.value


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """Sort results by what most are judged by, the best first, then the others; ties and scores of none by file."""
    counts = Counter(judged_by(entry.result).name for entry in entries)

    def order(entry: Entry) -> tuple[int, str, float, str]:
        metric = judged_by(entry.result)
        return -counts[metric.name], metric.name, _badness(metric) if metric.headline else 0.0, str(entry.path)

    return sorted(entries, key=order)


def _figure_prefix(entries: Sequence[Entry]) -> str:
    """The beginning of the names of a task's figures."""
    result = entries[0].result
    return slug(
        f"{result.task['name']} {result.task['version']} {result.task['split']} {result.data['fingerprint'][:8]}"
    )


def _curve(entries: Sequence[Entry], setting: str, label: str) -> Part | None:
    """Bounds against a setting of inference, from the records of diagnostics; from above too where they have it."""
    series, rows, values = [], [], set()
    for colour, (name, entry) in enumerate(zip(labels(entries), entries, strict=True)):
        records = [r for r in read_records(entry.path, entry.result) or [] if r.get("part") == f"bounds by {setting}"]
        both = bool(records) and all(_UPPER in record for record in records)
        with computing_from_records(entry.path, "bounds by a setting"):
            values |= {record[setting] for record in records}
            found = {
                likelihood: [_bound(record, setting, likelihood, entry.result, name) for record in records]
                for likelihood in (*_BOUNDS, *((_UPPER,) if both else ()))
            }
            for i, record in enumerate(records):
                elbo, importance = (f"≤ {found[likelihood][i].y:.4f}" for likelihood in _BOUNDS)
                above = NOTHING
                if both:
                    above = notation.SIGNS[record[f"{_UPPER}_kind"]] + notation.number(found[_UPPER][i].y, digits=5)
                flops = notation.short(record["elbo_flops_per_token"])
                rows.append((name, str(record[setting]), elbo, importance, above, flops))
        for likelihood, points in found.items() if records else ():
            series.append(
                Series(
                    name=f"{name}, {likelihood.replace('_', ' ')}",
                    # Below 0 an upper bound says nothing, and would push all else out of sight.
                    points=tuple(point for point in points if point.y > 0),
                    joined=True,
                    dashed=likelihood != "elbo",
                    colour=colour,
                )
            )
    if not series:
        return None
    header = [
        "Model",
        label,
        "ELBO, nats/token",
        "Importance bound, nats/token",
        "From above, nats/token",
        "FLOPs/token for the ELBO",
    ]
    columns = [n for n in range(len(header)) if n != 4 or any(row[n] != NOTHING for row in rows)]
    cells = tuple(tuple(row[n] for n in columns) for row in rows)
    figure = Figure(
        name=f"{_figure_prefix(entries)}-{setting}",
        title=f"Bounds by {label.lower()}",
        words="Each point is a bound on fresh noise, at most or, from above, at least that; lower is better.",
        x=Axis(label=label, ticks=tuple((_position(value), str(value)) for value in sorted(values))),
        y=Axis(label="Nats a token"),
        series=tuple(series),
    )
    table_of_points = Table(header=tuple(header[n] for n in columns), rows=cells)
    return Part(title=figure.title, level=3, figures=(figure,), table=table_of_points)


def _bound(record: Mapping[str, Any], setting: str, likelihood: str, result: Result, name: str) -> Point:
    nats, error = mean_and_error([-value / result.scoring["block_length"] for value in record[likelihood]])
    spread = "" if math.isnan(error) else f" ± {error:.4f}"
    tip = f"{name}, {setting} {record[setting]}: {likelihood} {nats:.4f}{spread}"
    return Point(x=_position(record[setting]), y=nats, tip=tip)


def _position(value: int) -> float:
    # Doublings are equally spaced, and 0 is as far from 1 as 1 from 2.
    return math.log2(value) + 1 if value else 0.0
