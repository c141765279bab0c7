"""The inference gap log p(x) - ELBO from both sides: how much of a latent model's loss is inference, and not the model.

It is the sum of two (Cremer et al., arXiv 1801.03558): the approximation gap, of the best Gaussian q, and the
amortization gap, of the encoder's q beside the best one. Shapes: N texts.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ltm.result import Metric
from ltm.statistics import Blocks, Measured, paired_difference
from tasks import results

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.diagnostics.measures import Point


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """What is known of the inference gap of a model's own q, in nats per token, paired over texts.

    Attributes:
        loss: -ELBO.
        at_most: by the upper bound on log p(x); an estimate, and not at most, unless `trusted`.
        at_least: by the importance bound.
        amortization_at_least: what refining the encoder's q gains; None without an encoder.
        trusted: whether the upper bound's weights allow to call it one.
        tail, effective: mean tail index and median of effective draws of these weights, over texts.
        texts: N.
    """

    loss: float
    at_most: Measured
    at_least: Measured
    amortization_at_least: Measured | None
    trusted: bool
    tail: float
    effective: float
    texts: int


def measured(points: Sequence[Point], length: int, *, own: int, encoder: bool) -> Gap:
    """Compare the ELBO of the model's own q with both sides at the best q of the curve.

    The best is chosen by its ELBO, whose draws are not those of the importance bound and the upper bound: chosen by
    these themselves, they would bound nothing. What refinement gains is read where it has taken the most steps, which
    nothing had to choose.

    Args:
        points: over steps, from both sides.
        length: tokens of each text.
        own: the setting of the model's own q.
        encoder: whether that is an encoder's, which the points with steps have refined.

    Raises:
        ValueError: no point has that setting, or one has no upper bound.
    """
    if any(p.upper_N is None for p in points):
        raise ValueError("a gap needs every point from both sides")
    (first,) = [p for p in points if p.setting == own]
    chosen = best(points)
    assert chosen.upper_N is not None
    at_most, at_least, refined = (
        _gain(first.elbo_N, to_N, length) for to_N in (chosen.upper_N, chosen.importance_N, points[-1].elbo_N)
    )
    return Gap(
        loss=-float(first.elbo_N.mean()) / length,
        at_most=at_most,
        at_least=at_least,
        amortization_at_least=refined if encoder else None,
        trusted=chosen.trusted,
        tail=float(chosen.reliability["tail"].mean()) if "tail" in chosen.reliability else math.inf,
        effective=float(chosen.reliability["effective"].quantile(0.5)),
        texts=len(first.elbo_N),
    )


def best(points: Sequence[Point]) -> Point:
    """The point with the best ELBO; the first of equals."""
    return max(points, key=lambda p: float(p.elbo_N.sum()))


def _gain(from_N: Tensor, to_N: Tensor, length: int) -> Measured:
    first, second = (
        Blocks(
            source="the curve",
            nats_N=nats_N.cpu().double().numpy(),
            tokens_N=np.full(len(nats_N), length, np.float64),
        )
        for nats_N in (from_N, to_N)
    )
    return paired_difference(first, second)


def metrics(gap: Gap) -> tuple[Metric, ...]:
    """The gap as metrics. As of every cost, `lower_bound` is one on log p, so that the number is at most that."""
    common: dict[str, Any] = {"unit": "token", "headline": False, "n": gap.texts}
    found = [
        results.metric(
            "inference_gap_nats_per_token",
            gap.at_most,
            likelihood="tube_upper_bound",
            kind="lower_bound" if gap.trusted else "estimate",
            **common,
        ),
        results.metric(
            "inference_gap_at_least_nats_per_token",
            gap.at_least,
            likelihood="importance_bound",
            kind="upper_bound",
            **common,
        ),
    ]
    if gap.amortization_at_least is not None:
        found.append(
            results.metric(
                "amortization_gap_at_least_nats_per_token",
                gap.amortization_at_least,
                likelihood="elbo",
                kind="upper_bound",
                **common,
            )
        )
    return tuple(found)


def answer(gap: Gap) -> str:
    """What the numbers say, in words; sides as far as their 95% intervals reach."""
    value, (_, most), (least, _) = gap.at_most.value, _ends(gap.at_most), _ends(gap.at_least)
    loss = f"Of the loss of {gap.loss:.4f} nats per token"
    if gap.trusted:
        said = f"{loss} at most {max(0.0, most):{form(most)}} is inference; the rest is the model."
    else:
        said = (
            f"{loss} about {value:{form(value)}} may be inference (~, no bound: importance weights with a mean tail "
            f"index of {gap.tail:.2f} and {gap.effective:.1f} effective draws); at least {max(0.0, least):.4f} is."
        )
    if gap.amortization_at_least is not None:
        least, most = _ends(gap.amortization_at_least)
        gain = f"{gap.amortization_at_least.value:+.4f} [{least:+.4f}, {most:+.4f}]"
        said += f" Refining the encoder's q gains {gain}: the amortization gap is at least that."
    return "inference gap:\n" + textwrap.fill(said, 98, initial_indent="  ", subsequent_indent="  ")


def form(value: float) -> str:
    """The format of a number of nats per token; one weight beyond all bounds makes an upper bound vacuous, and long."""
    return ".4f" if abs(value) < 10_000 else ".1e"


def _ends(measured: Measured) -> tuple[float, float]:
    return measured.ci95 or (measured.value, measured.value)
