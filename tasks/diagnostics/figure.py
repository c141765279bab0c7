"""The figure of the diagnostics: valid bounds against fast steps, counted FLOPs, and latents used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import results

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.diagnostics.measures import Point


def draw(curves: Mapping[str, Sequence[Point]], length: int, *, title: str, key: str, output: Path) -> str:
    """Write the figure as SVG next to the result of that key; return a sentence that says where, or why not."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
    except ImportError:
        return results.NO_FIGURE
    panels = [(by, by, points) for by, points in curves.items()]
    if "steps" in curves:
        panels.insert(1, ("steps", "FLOPs", curves["steps"]))
    figure = Figure(figsize=(4.2 * len(panels), 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (_, horizontal, points) in zip(axes, panels, strict=True):
        for name, label in (("elbo", "ELBO"), ("importance", "importance bound")):
            values = [getattr(p, f"{name}_N") for p in points]
            at = [getattr(p, f"{name}_flops") if horizontal == "FLOPs" else p.setting for p in points]
            means, errors = [_mean(v) / length for v in values], [_error(v) / length for v in values]
            axis.errorbar(at, means, yerr=errors, marker="o", markersize=3, capsize=2, label=label)
        if horizontal == "FLOPs":
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(EngFormatter())
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_xlabel("FLOPs per token, counted")
        else:
            axis.set_xscale("symlog", base=2, linthresh=1)
            axis.set_xticks([p.setting for p in points], [str(p.setting) for p in points])
            axis.set_xlabel({"steps": "fast steps", "latents": "latent vectors used"}[horizontal])
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("nats per token ± SE over blocks")
    axes[0].legend()
    figure.suptitle(f"{title}: upper bounds, fresh noise")
    return results.write_figure(figure, title=title, key=key, output=output)


def _mean(nats_N: Tensor) -> float:
    return -float(nats_N.mean())


def _error(nats_N: Tensor) -> float:
    return float(nats_N.std()) / math.sqrt(len(nats_N)) if len(nats_N) > 1 else 0.0
