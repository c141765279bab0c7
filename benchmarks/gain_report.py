"""Tables and figure of `benchmarks.latent_gain`. Shapes: N texts, L tokens per text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from torch import Tensor

from ltm.config import to_dict
from ltm.known_sources.topics import Topics
from ltm.latent.model import LTMConfig
from ltm.statistics import Blocks, paired_difference

BASE, EQUAL_FLOPS = "", "equal FLOPs"
WINDOW = "decoder.window="
BOUNDS = {"elbo": "ELBO", "importance_bound": "importance bound"}
NO_FIGURE = "no figure without matplotlib: pip install 'latent-thought-bench[plots]'"


def difference(own_N: np.ndarray, other_N: np.ndarray, length: int) -> tuple[float, float, float]:
    """How many more nats per token one model costs than another, paired by text, and both ends of its 95% interval.

    Args:
        own_N, other_N: log-likelihoods of the same texts in nats, at least two, of `length` tokens each.
    """
    tokens_N = np.full(len(own_N), length)
    pair = (
        Blocks(source=name, nats_N=nats_N, tokens_N=tokens_N) for name, nats_N in (("own", own_N), ("other", other_N))
    )
    found = paired_difference(*pair)
    assert found.ci95 is not None
    return (found.value, *found.ci95)


def with_interval(value: float, low: float, high: float) -> str:
    """Format a difference in nats per token."""
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gains:
    """Finished runs and the texts they are compared on.

    Attributes:
        records: one per training seed, by model and change.
        source: the source of the texts.
        symbols_NL: the texts, as symbols of the source.
    """

    records: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
    source: Topics
    symbols_NL: Tensor

    def nats(self, model: str, change: str, likelihood: str) -> np.ndarray:
        """Return the nats of each text, averaged over training seeds, (N,)."""
        return np.mean([record["nats"][likelihood] for record in self.records[model, change]], axis=0)

    def per_token(self, model: str, change: str, likelihood: str) -> float:
        """Return nats per token."""
        return -float(self.nats(model, change, likelihood).mean()) / self.source.length

    def spread(self, model: str, change: str, likelihood: str) -> str:
        """Format nats per token and, for several training seeds, their standard deviation."""
        values = [-np.mean(r["nats"][likelihood]) / self.source.length for r in self.records[model, change]]
        return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")

    def difference(self, change: str, likelihood: str, other_N: np.ndarray) -> str:
        """Format how many more nats per token an LTM needs than another model, paired by text, with 95% interval."""
        return with_interval(*difference(self.nats("ltm", change, likelihood), other_N, self.source.length))

    def over_ar(self, config: LTMConfig) -> Table:
        """Make two rows per window: the trained AR and the best possible one, each against the LTM of that window."""
        L, (one, *more) = self.source.length, self.records["ltm", BASE]
        true = -float(self.source.log_likelihood(self.symbols_NL).mean()) / L
        table = Table(
            title=f"{self.source.spec}: entropy {self.source.entropy().nats_per_text / L:.3f} nats per token, "
            f"{true:.3f} on the {len(self.symbols_NL)} texts scored. {one['tokens'] / 1e6:.1f}M training tokens, "
            f"{1 + len(more)} seeds; LTM − AR, paired by text",
            box=box.MARKDOWN,
        )
        for column in ("AR", "Nats/token", *(f"{name} − AR" for name in BOUNDS.values())):
            table.add_column(column, justify="left" if column == "AR" else "right")
        for (model, change), runs in self.records.items():
            other = BASE if change == EQUAL_FLOPS else change
            if model != "ar" or ("ltm", other) not in self.records:
                continue
            window = window_of(change, config)
            rows = {f"window {window}": (self.spread("ar", change, "exact"), self.nats("ar", change, "exact"))}
            if change == EQUAL_FLOPS:
                rows = {f"window {window}, {runs[0]['tokens'] / 1e6:.1f}M tokens": rows[f"window {window}"]}
            else:
                seen = reach(config.decoder.layers, None if window == "none" else int(window), L)
                best_N = best_within(self.source, self.symbols_NL, seen)
                rows["the best possible"] = (f"{-best_N.mean() / L:.3f}", best_N)
            for name, (value, nats_N) in rows.items():
                table.add_row(name, value, *(self.difference(other, likelihood, nats_N) for likelihood in BOUNDS))
        return table

    def of_settings(self) -> Table:
        """Make one row per LTM: valid bounds, nats per text of z, active units."""
        table = Table(title="The LTM, one setting at a time", box=box.MARKDOWN)
        for column in ("LTM", *BOUNDS.values(), "KL", "I(x; z)", "Active units", "FLOPs/token"):
            table.add_column(column, justify="left" if column == "LTM" else "right")
        for (model, change), runs in self.records.items():
            if model == "ltm":
                table.add_row(
                    change or "base",
                    *(self.spread("ltm", change, likelihood) for likelihood in BOUNDS),
                    *(f"{np.mean([r[name] for r in runs]):.1f}" for name in ("kl", "mutual_information")),
                    f"{np.mean([r['active_units'] for r in runs]):.0f}/{runs[0]['units']}",
                    f"{runs[0]['flops_per_token'] / 1e6:.1f}M",
                )
        return table


def best_within(source: Topics, symbols_NL: Tensor, seen: int) -> np.ndarray:
    """Return log-likelihoods by the best model that sees `seen` symbols before each, (N,) nats.

    It knows the source and predicts each symbol from its conditional distribution given those symbols alone. The chain
    is stationary, so every window has the law of a text's beginning.
    """
    beginning, windows_NPS = dataclasses.replace(source, length=seen + 1), symbols_NL.unfold(1, seen + 1, 1)
    nats: list[float] = []
    for windows_PS in windows_NPS:
        log_r_PS = beginning.log_prefixes(windows_PS).logsumexp(0) - math.log(source.topics)
        nats.append(float(log_r_PS[0, -1] + (log_r_PS[1:, -1] - log_r_PS[1:, -2]).sum()))
    return np.array(nats)


def reach(layers: int, window: int | None, length: int) -> int:
    """Return how many earlier symbols the last position of a causal stack sees."""
    return length - 1 if window is None else min(length - 1, layers * (window - 1) + 1)


def window_of(change: str, config: LTMConfig) -> str:
    """Return the attention window of a run."""
    return change.removeprefix(WINDOW) if change.startswith(WINDOW) else str(config.decoder.window)


def draw(gains: Gains, factors: Mapping[str, Sequence[str]], config: LTMConfig, file: Path) -> str:
    """Draw bounds, KL and active units over each setting, as SVG; return where it is, or why there is none."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return NO_FIGURE
    shown = [f for f in factors if any(change.startswith(f"{f}=") for _, change in gains.records)]
    if not shown:
        return "no figure: no setting was changed"
    figure = Figure(figsize=(2.6 * len(shown), 5.2), layout="constrained")
    panels = figure.subplots(2, len(shown), squeeze=False, sharey="row", sharex="col")
    for (upper, lower), factor in zip(panels.T, shown, strict=True):
        base: Any = to_dict(config)
        for part in factor.split("."):
            base = base[part]
        values = sorted({str(base), *factors[factor]}, key=lambda v: float("inf" if v == "none" else v))
        changes = {value: BASE if value == str(base) else f"{factor}={value}" for value in values}
        at = [value for value in values if ("ltm", changes[value]) in gains.records]
        for likelihood, name in BOUNDS.items():
            upper.plot(
                at, [gains.per_token("ltm", changes[v], likelihood) for v in at], "o-", ms=4, label=f"LTM, {name}"
            )
        same = {v: changes[v] if ("ar", changes[v]) in gains.records else BASE for v in at}
        upper.plot(at, [gains.per_token("ar", same[v], "exact") for v in at], "k--", label="AR, equal tokens")
        runs = [gains.records["ltm", changes[value]][0] for value in at]
        lower.plot(at, [r["kl"] for r in runs], "o-", ms=4, label="KL, nats per text")
        lower.plot(at, [100 * r["active_units"] / r["units"] for r in runs], "s--", ms=4, label="active units, %")
        lower.plot(at, [r["mutual_information"] for r in runs], "^:", ms=4, label="I(x; z), nats per text")
        lower.set_xlabel(factor)
        for axis in (upper, lower):
            axis.grid(alpha=0.3)
    panels[0, 0].set_ylabel("nats per token")
    panels[1, 0].set_yscale("symlog", linthresh=10)
    for row in panels:
        row[0].legend(fontsize=7)
    figure.suptitle(f"LTM on {gains.source.spec}: valid bounds on fresh noise, and information in z")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    return f"figure written to {file}"
