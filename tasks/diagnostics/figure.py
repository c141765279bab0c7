"""The figure of the diagnostics: both sides against fast steps and counted FLOPs, and bounds against latents used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import results

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.diagnostics.measures import Point


def draw(
    curves: Mapping[str, Sequence[Point]],
    length: int,
    *,
    own: int,
    encoder: bool,
    title: str,
    key: str,
    output: Path,
) -> str:
    """Write the figure as SVG next to the result of that key; return a sentence that says where, or why not.

    Args:
        curves: by `steps` and by `latents`.
        length: tokens of each text.
        own: the number of steps of the model's own q, whose ELBO the errors of all points are paired with.
        encoder: whether that q is an encoder's; its ELBO is then a horizontal line.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return results.NO_FIGURE
    panels = (("steps", "steps"), ("steps", "FLOPs"), ("latents", "latents"))
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    (reference,) = [p.elbo_N for p in curves["steps"] if p.setting == own]
    for axis, (by, horizontal) in zip(axes, panels, strict=True):
        points = curves[by]
        for name, label in (("elbo", "ELBO"), ("importance", "importance bound")):
            values = [getattr(p, f"{name}_N") for p in points]
            errors = [_error(v - reference) / length for v in values]
            axis.errorbar(
                _at(points, horizontal, name),
                [_mean(v) / length for v in values],
                yerr=errors,
                marker="o",
                markersize=3,
                label=label,
            )
        _band(axis, points, _at(points, horizontal, "importance"), length)
        if encoder:
            axis.axhline(_mean(reference) / length, color="grey", linestyle=":", linewidth=1, label="encoder's ELBO")
        _scale(axis, horizontal, points)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("nats per token\n± SE of the difference from the model's ELBO", fontsize="small")
    axes[0].legend(fontsize="small")
    figure.suptitle(f"{title}: the model's own loss lies in the band; what the ELBO has above it is inference")
    return results.write_figure(figure, title=title, key=key, output=output)


def _band(axis: Any, points: Sequence[Point], at: Sequence[float], length: int) -> None:
    """Fill what the two sides leave open; where the gate has closed, the lower edge is an estimate, drawn hollow."""
    known = [(x, p, _mean(p.upper_N) / length) for x, p in zip(at, points, strict=True) if p.upper_N is not None]
    shown = [(x, p, low) for x, p, low in known if low > 0]  # "at least" less than nothing is left out
    lows = [low for *_, low in shown]
    highs = [_mean(p.importance_N) / length for _, p, _ in shown]
    axis.fill_between([x for x, *_ in shown], lows, highs, color="tab:green", alpha=0.2, linewidth=0)
    for trusted, label in ((True, "from above: at least"), (False, "~ from above, gate closed")):
        some = [(x, low) for x, p, low in shown if p.trusted == trusted]
        if some:
            axis.plot(
                *zip(*some, strict=True),
                color="tab:green",
                marker="v",
                markersize=4,
                linestyle="-" if trusted else "",
                markerfacecolor="tab:green" if trusted else "none",
                label=label,
            )


def _at(points: Sequence[Point], horizontal: str, name: str) -> list[float]:
    return [getattr(p, f"{name}_flops") if horizontal == "FLOPs" else p.setting for p in points]


def _scale(axis: Any, horizontal: str, points: Sequence[Point]) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator

    if horizontal == "FLOPs":
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(EngFormatter())
        axis.set_xlabel("FLOPs per token, counted")
    else:
        axis.set_xscale("symlog", base=2, linthresh=1)
        axis.set_xticks([p.setting for p in points], [str(p.setting) for p in points])
        axis.set_xlabel({"steps": "fast steps", "latents": "latent vectors used"}[horizontal])
    axis.xaxis.set_minor_locator(NullLocator())


def _mean(nats_N: Tensor) -> float:
    return -float(nats_N.mean())


def _error(nats_N: Tensor) -> float:
    return float(nats_N.std()) / math.sqrt(len(nats_N)) if len(nats_N) > 1 else 0.0
