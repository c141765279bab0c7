"""Every text of a miniature between its bounds: lower <= log p(x) <= upper for all 81 at once, log p(x) being known.

Latent models have two latent dimensions, over which p(x|z) is integrated by quadrature, or few codes, over which it is
summed; the law of masked models is computed over all orders and times. Rules of order have no bounds: they are exact,
and their probabilities are summed. Shapes: B texts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table
from scipy.stats import norm
from scipy.stats import t as student_t
from torch import Tensor

from baselines.diffusion.bd3lm import BD3LM
from baselines.diffusion.masking import MaskedModel
from baselines.diffusion.md4 import MD4
from baselines.diffusion.mdlm import MDLM
from baselines.diffusion.sedd import SEDD
from baselines.vae import VAE
from baselines.vq import VQConfig
from ltm.config import with_settings
from ltm.latent import reliability
from ltm.latent.posterior import PosteriorConfig
from ltm.rng import SequenceRng
from ltm.testing.miniatures import L, V, all_texts, train_briefly
from tests.support import quadrature
from tests.support.masked_laws import log_law

TEXTS = V**L
LEVEL = 0.05
"""How often a bound whose costs are normal is beyond it for any of the texts, if it has no slack at all."""
ONE_SIDED = float(norm.isf(LEVEL))
"""Standard errors beyond which the total of all texts refutes its bound."""
ROUNDING = 2e-5
"""Nats by which the law of a masked model may be off, which is computed on a grid."""
INTEGRATED = 1e-3
"""The same of a text's evidence under a model with two latent dimensions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A model, log p of all texts, how far that may be off in nats, and the draws of the ELBO."""

    model: Any
    log_p_B: Tensor
    off: float
    draws: int


def _ltm(seed: int) -> Made:
    model = quadrature.two_dimensional(seed, PosteriorConfig(steps=32, lr=0.1), kl_warmup=1.0, kl_weight_start=0.1)
    return Made(model=model, log_p_B=_evidence(model), off=INTEGRATED, draws=32)


def _langevin(seed: int) -> Made:
    model = quadrature.two_dimensional(seed)
    model.config = with_settings(model.config, ["inference=langevin", "langevin.steps=4"])
    return Made(model=model, log_p_B=_evidence(model), off=INTEGRATED, draws=128)


def _vae(seed: int) -> Made:
    model = quadrature.two_dimensional(seed, cls=VAE, kl_warmup=1.0, kl_weight_start=0.1)
    return Made(model=model, log_p_B=_evidence(model), off=INTEGRATED, draws=64)


def _codes(seed: int) -> Made:
    torch.manual_seed(seed)
    few = VQConfig(codes=4, code_width=2, prior_width=8)
    config = dataclasses.replace(VAE.miniature(V + 1, L), latents=2, bottleneck="vq", vq=few)
    model: Any = VAE(config).double()
    train_briefly(model, 150, seed)
    model.eval().requires_grad_(False)
    return Made(model=model, log_p_B=quadrature.evidence_of_codes(model, all_texts()), off=ROUNDING, draws=1)


def _masked(family: type[MaskedModel], seed: int) -> Made:
    torch.manual_seed(seed)
    model: Any = family(family.miniature(V + 1, L)).double()
    train_briefly(model, 150, seed)
    model.eval().requires_grad_(False)
    return Made(model=model, log_p_B=log_law(model, all_texts()), off=ROUNDING, draws=64)


def _evidence(model: Any) -> Tensor:
    return quadrature.evidence(model, all_texts(), within=INTEGRATED)


MADE: Mapping[str, Callable[[int], Made]] = {
    "ltm": _ltm,
    "ltm, inference=langevin": _langevin,
    "vae": _vae,
    "vae, bottleneck=vq": _codes,
    **{family.family: lambda seed, family=family: _masked(family, seed) for family in (MDLM, MD4, SEDD, BD3LM)},
}


def measured(name: str, seed: int) -> dict[str, Any]:
    """Train a miniature and score all texts under one noise; return what there is to say of each bound.

    Of each: `worst`, by how many standard errors the text that is furthest beyond it is so, `nats` by how many nats,
    `allowed`, by how many errors it may be, `in_all`, by how many errors the total is, and `slack`, the mean nats
    between bound and log p(x); of an upper bound whether its gate is open, `trusted`. Of rules of order: `off`, how far
    their sum is from 1.
    """
    made = MADE[name](seed)
    model, draws, noise = made.model, made.draws, SequenceRng(seed, range(TEXTS))
    mass = float(made.log_p_B.exp().sum())
    record: dict[str, Any] = {"name": name, "seed": seed, "mass": mass, "bounds": {}, "off": {}}
    likelihoods = model.log_likelihoods(all_texts(), rng=noise, draws=draws)
    weights = 8 * draws if "importance_bound" in likelihoods else draws
    for which, found in likelihoods.items():
        if found.kind not in ("lower_bound", "upper_bound"):
            continue
        beyond_B = (found.nats_B - made.log_p_B) * (1 if found.kind == "lower_bound" else -1)
        error_B = torch.zeros_like(beyond_B) if found.mc_var_B is None else found.mc_var_B.sqrt()
        # Without Monte Carlo error a bound holds to the last digits, or not at all.
        of_errors_B = torch.where(beyond_B > made.off, (beyond_B - made.off) / error_B, 0.0)
        record["bounds"][which] = {
            "kind": found.kind,
            "worst": float(of_errors_B.max()),
            "nats": float(beyond_B.max()),
            "allowed": 0.0 if found.mc_var_B is None else _allowed(draws if which == "elbo" else weights),
            "in_all": float(beyond_B.sum() / error_B.square().sum().sqrt().clamp(min=ROUNDING)),
            "slack": -float(beyond_B.mean()),
        }
        if found.kind == "upper_bound":
            record["bounds"][which]["trusted"] = reliability.trusted(found.reliability)
    if isinstance(model, MaskedModel):
        for rule in ("left_to_right", "confidence", "margin"):
            ruled = type(model)(dataclasses.replace(model.config, unmasking=rule)).double()  # type: ignore[call-arg]
            ruled.load_state_dict(model.state_dict())
            mass = float(ruled.eval().log_likelihood(all_texts(), rng=noise).nats_B.exp().sum())
            record["off"][rule] = abs(mass - 1)
    return record


def _allowed(draws: int) -> float:
    """Errors beyond which a text refutes its bound, one-sided: a Student t's, since the error is from draws too."""
    return float(student_t.isf(LEVEL / TEXTS, draws - 1))


def held(record: Mapping[str, Any]) -> bool:
    """True if no text is beyond a bound of the miniature by more errors than allowed, and what is exact sums to 1.

    An upper bound whose gate is closed is an estimate, and claims nothing.
    """
    claimed = (each for each in record["bounds"].values() if each.get("trusted", True))
    return all(each["worst"] <= each["allowed"] for each in claimed) and all(
        off < ROUNDING for off in record["off"].values()
    )


def table(records: list[dict[str, Any]]) -> Table:
    """Return a row for each bound of each family, over all seeds."""
    rows = Table(
        title=f"Seeds under which no text of {TEXTS} is beyond a bound by more stated errors than allowed, nor their "
        f"total by {ONE_SIDED:.3f}: {1 - LEVEL:.0%} if costs are normal and there is no slack",
        box=box.MARKDOWN,
    )
    for column in (
        "Miniature",
        "Bound",
        "All held",
        "Worst, in errors",
        "Allowed",
        "Worst, nats",
        "Total held",
        "Slack, nats",
    ):
        rows.add_column(column, justify="left" if column in ("Miniature", "Bound") else "right")
    for name in MADE:
        own = [record for record in records if record["name"] == name]
        for which in own[0]["bounds"] if own else ():
            each = [one for record in own if (one := record["bounds"][which]).get("trusted", True)]
            if not each:
                rows.add_row(name, which, "gate closed")
                continue
            rows.add_row(
                name,
                which,
                f"{sum(one['worst'] <= one['allowed'] for one in each)} of {len(each)}",
                f"{max(one['worst'] for one in each):+.2f}",
                f"{each[0]['allowed']:.2f}",
                f"{max(one['nats'] for one in each):+.4f}",
                f"{sum(one['in_all'] <= ONE_SIDED for one in each)} of {len(each)}",
                f"{math.fsum(one['slack'] for one in each) / len(each):.4f}",
            )
        if own and own[0]["off"]:
            worst = max(off for record in own for off in record["off"].values())
            rows.add_row(name, "rules of order", f"sum to 1 within {worst:.0e}")
    return rows
