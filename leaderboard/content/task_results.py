"""Results that are no perplexities: a table for each task on one text, and figures of what belongs in one."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from leaderboard.content import notation, reported
from leaderboard.content.cost_views import mean_and_error
from leaderboard.content.document import NOTHING, Axis, Figure, Part, Point, Series, Table, Value, slug
from leaderboard.entries import Entry
from leaderboard.labels import labels
from leaderboard.ranking import judged_by
from ltm.result import Metric, Result, read_records

_BOUNDS = ("elbo", "importance_bound")
REFERENCE = ("chance", "human", "shuffled")
"""First word of metrics that are not the model's: `human_...`, and `chance_NAME_...` of the chance model NAME."""


def parts(entries: Sequence[Entry], title: str) -> list[Part]:
    """All that the results of a task on one text say."""
    whole = Part(
        title=title,
        text=(f"{caption(entries)}.",),
        figures=tuple(_generation(entries)),
        table=table(entries),
    )
    curves = (_curve(entries, "steps", "Fast steps"), _curve(entries, "latents", "Latent vectors"))
    return [whole, *(curve for curve in curves if curve is not None)]


def caption(entries: Sequence[Entry]) -> str:
    """Which version of the task it is, and on which text."""
    task, data = entries[0].result.task, entries[0].result.data
    return (
        f"{task['name']} version {task['version']}, {data['corpus']} {task['split']} "
        f"(text {data['fingerprint'][:8]}): {data['documents']:,} documents"
    )


def table(entries: Sequence[Entry]) -> Table:
    """A row a result, the best first, a column a metric; below them blind guessing and human text, by the same metrics.

    What papers report of a task is in the reported rows, in per cent made a share.
    """
    entries = in_order(entries)
    names: dict[str, Metric] = {}
    beside: dict[tuple[str, ...], dict[str, Metric]] = {}
    rows: list[tuple[str, Entry, dict[str, Metric]]] = []
    for label, entry in zip(labels(entries), entries, strict=True):
        own: dict[str, Metric] = {}
        others: dict[str, dict[str, Metric]] = defaultdict(dict)
        for name, metric in _named(entry.result).items():
            row, rest = _whose(name)
            (others[row] if row else own)[rest] = metric
        names |= {name: metric for name, metric in own.items() if name not in names}
        rows.append((label, entry, own))
        # Human text differs between tokenizers, so each set of values is a row of its own.
        for row, values in others.items():
            beside.setdefault((row, *(f"{name} {metric.value!r}" for name, metric in values.items())), values)
    names = dict(sorted(names.items(), key=lambda item: not item[1].headline))
    arrows = {"lower": "↓", "higher": "↑"}
    papers = [paper for paper in reported.gsm8k() if paper.values.get(entries[0].result.task["name"])]
    return Table(
        header=("Model", *(f"{name} {arrows[metric.direction]}" for name, metric in names.items()), "n", "Tokens/s"),
        rows=(
            *(
                (
                    label,
                    *(_value(entry, own.get(name)) for name in names),
                    str(judged_by(entry.result).n),
                    notation.short(entry.result.provenance["tokens_per_second"]),
                )
                for label, entry, own in rows
            ),
            *(
                (
                    row,
                    *(notation.value_and_error([values.get(name)]) for name in names),
                    NOTHING,
                    NOTHING,
                )
                for (row, *_), values in sorted(beside.items())
            ),
        ),
        reported=tuple(
            (
                paper.label,
                *(_share(paper, entries[0].result, name) for name in names),
                NOTHING,
                NOTHING,
            )
            for paper in papers
        ),
    )


def _share(paper: reported.Reported, result: Result, name: str) -> str:
    value = paper.values[result.task["name"]] if name == "pass@5_legacy_substring" else None
    return f"{float(value) / 100:.3f}" if value else NOTHING


def _value(entry: Entry, metric: Metric | None) -> str | Value:
    text = notation.value_and_error([metric])
    return notation.with_tooltip(text, [entry], [metric]) if metric is not None and metric.headline else text


def _named(result: Result) -> dict[str, Metric]:
    """Metrics by name, with the likelihood in it where there are several of a name."""
    counts = Counter(metric.name for metric in result.metrics)
    return {m.name if counts[m.name] == 1 else f"{m.name} ({m.likelihood})": m for m in result.metrics}


def _whose(name: str) -> tuple[str, str]:
    """Whose a metric is, `` for the model's own, and its name there: `chance_constants_pass@5` is pass@5."""
    first, _, rest = name.partition("_")
    if first not in REFERENCE:
        return "", name
    if first != "chance":
        return {"human": "human text", "shuffled": "human text, words shuffled"}[first], rest
    who, _, rest = rest.partition("_")
    return f"chance: {who}", rest


def brief_table(entries: Sequence[Entry]) -> Table:
    """A row a result, with what it is judged by."""
    entries = in_order(entries)
    rows = []
    for entry, label in zip(entries, labels(entries), strict=True):
        metric, result = judged_by(entry.result), entry.result
        rows.append(
            (
                label,
                metric.name,
                notation.value_and_error([metric]),
                str(metric.n),
                notation.short(result.provenance["tokens_per_second"]),
            )
        )
    return Table(header=("Model", "Metric", "Value", "n", "Tokens/s"), rows=(*rows, *_chance_rows(entries)))


def _chance_rows(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """What blind guessing gets by the metric that models are judged by, as the results carry it. Best first."""
    found: dict[tuple[str, ...], float] = {}
    for entry in entries:
        judged = judged_by(entry.result).name
        for metric in entry.result.metrics:
            whose, name = _whose(metric.name)
            if whose.startswith("chance") and name == judged:
                row = (whose, judged, notation.value_and_error([metric]), str(metric.n), NOTHING)
                found[row] = metric.value if metric.direction == "lower" else -metric.value
    return sorted(found, key=lambda row: (found[row], row))


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """The best first, by what they are judged by; where nothing is the headline, and in ties, by file."""

    def order(entry: Entry) -> tuple[str, float, str]:
        metric = judged_by(entry.result)
        worth = metric.value if metric.direction == "lower" else -metric.value
        return metric.name, worth if metric.headline else 0.0, str(entry.path)

    return sorted(entries, key=order)


def _file(entries: Sequence[Entry]) -> str:
    """What names of figures begin with."""
    result = entries[0].result
    return slug(
        f"{result.task['name']} {result.task['version']} {result.task['split']} {result.data['fingerprint'][:8]}"
    )


def _generation(entries: Sequence[Entry]) -> list[Figure]:
    """Gen PPL against entropy, a figure a scorer; human text beside, which is what samples should be like."""
    scorers = sorted({m.name for e in entries for m in e.result.metrics if m.name.startswith("gen_ppl[")})
    figures = []
    for name in scorers:
        models, people = [], {}
        for label, entry in zip(labels(entries), entries, strict=True):
            found = {metric.name: metric for metric in entry.result.metrics}
            if name in found and "unigram_entropy" in found:
                models.append(_generated(label, found, name))
            if f"human_{name}" in found and "human_unigram_entropy" in found:
                human = _generated("human text", found, name, "human_")
                people[human.x, human.y] = human
        models = [point for point in models if point.y > 0]
        if models:
            figures.append(
                Figure(
                    name=f"{_file(entries)}-{slug(name)}",
                    title=f"{name} against entropy",
                    words="Good samples are near human text; lower perplexity alone may be repetition.",
                    x=Axis(label="Unigram entropy, nats"),
                    y=Axis(label="Gen PPL", log=True),
                    series=(
                        Series(name="samples", points=tuple(models)),
                        *([Series(name="human text", points=tuple(people.values()))] if people else []),
                    ),
                )
            )
    return figures


def _generated(label: str, found: Mapping[str, Metric], name: str, prefix: str = "") -> Point:
    entropy, ppl = found[f"{prefix}unigram_entropy"], found[f"{prefix}{name}"]
    tip = f"{label}: Gen PPL {notation.value([ppl])}, entropy {notation.number(entropy.value)}"
    return Point(x=entropy.value, y=ppl.value, label="" if prefix else label, tip=tip)


def _curve(entries: Sequence[Entry], by: str, label: str) -> Part | None:
    """Bounds by a setting of inference, from the records of diagnostics."""
    series, rows, settings = [], [], set()
    for colour, (name, entry) in enumerate(zip(labels(entries), entries, strict=True)):
        records = [r for r in read_records(entry.path, entry.result) or [] if r.get("part") == f"bounds by {by}"]
        settings |= {record[by] for record in records}
        elbo, importance = (
            [_bound(record, by, likelihood, entry.result, name) for record in records] for likelihood in _BOUNDS
        )
        for likelihood, points in zip(_BOUNDS if records else (), (elbo, importance), strict=False):
            said = f"{name}, {likelihood.replace('_', ' ')}"
            series.append(
                Series(name=said, points=tuple(points), joined=True, dashed=likelihood != "elbo", colour=colour)
            )
        rows += [
            (
                name,
                str(record[by]),
                f"≤ {first.y:.4f}",
                f"≤ {second.y:.4f}",
                notation.short(record["elbo_flops_per_token"]),
            )
            for record, first, second in zip(records, elbo, importance, strict=True)
        ]
    if not series:
        return None
    figure = Figure(
        name=f"{_file(entries)}-{by}",
        title=f"Bounds by {label.lower()}",
        words="Each point is a valid bound on fresh noise; lower is better.",
        x=Axis(label=label, ticks=tuple((_place(setting), str(setting)) for setting in sorted(settings))),
        y=Axis(label="Nats a token, at most"),
        series=tuple(series),
    )
    header = ("Model", label, "ELBO, nats/token", "Importance bound, nats/token", "FLOPs/token for the ELBO")
    return Part(title=figure.title, level=3, figures=(figure,), table=Table(header=header, rows=tuple(rows)))


def _bound(record: Mapping[str, Any], by: str, likelihood: str, result: Result, name: str) -> Point:
    nats, error = mean_and_error([-value / result.scoring["block_length"] for value in record[likelihood]])
    tip = f"{name}, {by} {record[by]}: {likelihood} {nats:.4f}" + (f" ± {error:.4f}" if error == error else "")
    return Point(x=_place(record[by]), y=nats, tip=tip)


def _place(setting: int) -> float:
    # Doublings are equally far apart, and so is 0 from 1.
    return math.log2(setting) + 1 if setting else 0.0
