"""Plots of generated text: Gen PPL against entropy, and against what a sample costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from leaderboard.content import notation
from leaderboard.content.document import Axis, Figure, Point, Series, slug
from leaderboard.entries import Entry
from leaderboard.labels import labels
from ltm.result import Metric

_ENTROPY, _EVALUATIONS = "unigram_entropy", "network_evaluations"
_TITLES = {
    "gen_ppl": "Gen PPL",
    "gen_ppl_mean_of_exp": "Gen PPL, mean of exp",
    "mauve": "MAUVE",
    "mauve_star": "MAUVE*",
    "mauve_kmeans_sd": "MAUVE, s.d. over k-means",
    "empty": "Empty",
    "tokens_per_sample": "Tokens per sample",
    _ENTROPY: "Unigram entropy, nats",
    "repetition": "Ends in repetition",
    "self_bleu": "Self-BLEU",
    _EVALUATIONS: "Network evaluations",
    **{f"distinct_{order}": f"Distinct-{order}" for order in range(1, 5)},
    **{f"seq_rep_{order}": f"Seq-rep-{order}" for order in range(1, 5)},
}
"""How tables call metrics of generated text."""


def judges(names: Iterable[str]) -> set[str]:
    """Return the models by whose probabilities or features metrics are: `ar-mini@0c39` of `gen_ppl[ar-mini@0c39]`."""
    return {judge.removesuffix("]") for name in names if (judge := name.partition("[")[2])}


def metric_title(name: str, *, judge: bool = True) -> str:
    """Return what tables and plots call a metric: `Gen PPL by ar-mini@0c39`, or without its judge."""
    base, _, by = name.partition("[")
    if base not in _TITLES:
        return name
    return _TITLES[base] + (f" by {by.removesuffix(']')}" if by and judge else "")


def notes(entries: Sequence[Entry]) -> list[str]:
    """Name the judge of generated text, if there is a single one."""
    found = judges(metric.name for entry in entries for metric in entry.result.metrics)
    return [f"Gen PPL and MAUVE are by {judge}." for judge in found] if len(found) == 1 else []


def figures(entries: Sequence[Entry], prefix: str) -> list[Figure]:
    """Return the plots of a task for each scorer; names of figures begin with `prefix`."""
    scorers = sorted({m.name for e in entries for m in e.result.metrics if m.name.startswith("gen_ppl[")})
    both = [plot(entries, name, prefix) for name in scorers for plot in (_by_entropy, _by_evaluations)]
    return [figure for figure in both if figure is not None]


def _by_entropy(entries: Sequence[Entry], scorer: str, prefix: str) -> Figure | None:
    """Gen PPL against entropy, with human text for comparison."""
    models, humans = list[Point](), dict[tuple[float, float], Point]()
    for label, metrics in _labelled(entries):
        if scorer in metrics and _ENTROPY in metrics:
            models.append(_point(label, metrics, scorer))
        if f"human_{scorer}" in metrics and f"human_{_ENTROPY}" in metrics:
            human = _point("human text", metrics, scorer, "human_")
            humans[human.x, human.y] = human
    models = [point for point in models if point.y > 0]
    if not models:
        return None
    return Figure(
        name=f"{prefix}-{slug(scorer)}",
        title=f"{metric_title(scorer)}, against entropy",
        words="Good samples are near human text; lower perplexity alone may be repetition.",
        x=Axis(label="Unigram entropy, nats"),
        y=Axis(label="Gen PPL", log=True),
        series=(
            Series(name="samples", points=tuple(models)),
            *([Series(name="human text", points=tuple(humans.values()))] if humans else []),
        ),
    )


def _point(label: str, metrics: Mapping[str, Metric], scorer: str, prefix: str = "") -> Point:
    entropy, ppl = metrics[f"{prefix}{_ENTROPY}"], metrics[f"{prefix}{scorer}"]
    tip = f"{label}: Gen PPL {notation.value([ppl])}, entropy {notation.number(entropy.value)}"
    return Point(x=entropy.value, y=ppl.value, label="" if prefix else label, tip=tip)


def _by_evaluations(entries: Sequence[Entry], scorer: str, prefix: str) -> Figure | None:
    """Gen PPL against network evaluations per sample; None unless a model has samples at several numbers of them."""
    lines: dict[str, list[Point]] = {}
    for entry, (label, metrics) in zip(entries, _labelled(entries), strict=True):
        ppl, cost = metrics.get(scorer), metrics.get(_EVALUATIONS)
        if ppl is None or cost is None or ppl.value <= 0 or cost.value <= 0:
            continue
        entropy = f", entropy {notation.number(metrics[_ENTROPY].value)}" if _ENTROPY in metrics else ""
        tip = f"{label}: Gen PPL {notation.value([ppl])} in {notation.short(cost.value)} evaluations{entropy}"
        point = Point(x=cost.value, y=ppl.value, label=entry.result.model["name"], tip=tip)
        lines.setdefault(entry.result.model["name"], []).append(point)
    if all(len({point.x for point in points}) < 2 for points in lines.values()):
        return None
    series = []
    for n, points in enumerate(lines.values()):
        first, *others = sorted(points, key=lambda point: point.x)
        unnamed = (Point(x=point.x, y=point.y, tip=point.tip) for point in others)
        series.append(Series(name="", points=(first, *unnamed), joined=True, colour=n))
    return Figure(
        name=f"{prefix}-{slug(scorer)}-evaluations",
        title=f"{metric_title(scorer)}, against network evaluations",
        words="One line per model, a point per sampler and number of steps; entropy is in the tooltips.",
        x=Axis(label="Network evaluations per sample", log=True),
        y=Axis(label="Gen PPL", log=True),
        series=tuple(series),
    )


def _labelled(entries: Sequence[Entry]) -> list[tuple[str, dict[str, Metric]]]:
    metrics = [{metric.name: metric for metric in entry.result.metrics} for entry in entries]
    return [*zip(labels(entries), metrics, strict=True)]
