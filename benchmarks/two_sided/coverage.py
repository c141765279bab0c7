"""How often the interval between two bounds holds the total of log p(x) over texts: stated against seen.

Three models of `topics` are trained as those of docs/validity.md; their log p(x) is not known, so a reference takes its
place, from many more importance weights. With a linear-Gaussian decoder log p(x) is known, and q is as narrow as a
fitted one. Shapes: N texts, K draws, D latents.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich import box
from rich.table import Table
from scipy.stats import norm
from torch import Tensor

from baselines.vae import VAE, VAEConfig
from benchmarks.latent_gain import base_config
from ltm.api import LikelihoodEstimate
from ltm.known_sources.topics import Topics
from ltm.latent import bounds, mixture, reliability, tube
from ltm.latent.base import LatentModel
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import Posterior
from ltm.rng import SequenceRng, seed_of
from ltm.training import checkpoint
from ltm.training.config import TrainConfig
from ltm.training.run import train_model

SOURCE = Topics(length=32, topics=8, topic_scale=2.0, chain_scale=0.0)
"""Whose words depend on the topic alone, so that latents are soon of use."""
TEXTS = 8
TOKENS = "400k"
DRAWS = 8
"""Of the ELBO; the two others take eight times as many, which is the default."""
MANY = 1 << 13
"""Weights per text of the reference."""
REFERENCE = -1
"""The seed under which the reference is computed."""
ONE_SIDED, TWO_SIDED = float(norm.isf(0.05)), float(norm.isf(0.025))


class Case(Protocol):
    """Texts under a model."""

    def bounds(self, rng: SequenceRng) -> tuple[LikelihoodEstimate, LikelihoodEstimate]:
        """Return the lower and the upper bound of each text under a noise."""

    def reference(self) -> tuple[Tensor, Tensor]:
        """Return log p of each text and its variance, (N,); 0 where it is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Fresh texts of `SOURCE` under a latent model that was trained on it."""

    model: LatentModel
    tokens_NL: Tensor

    @torch.no_grad()
    def bounds(self, rng: SequenceRng) -> tuple[LikelihoodEstimate, LikelihoodEstimate]:
        """See `Case`."""
        batch = self.model.scoring_batch(self.tokens_NL, 0, None, rng)
        found = self.model.gaussian_bounds(batch, whole=True, draws=DRAWS, only=None)
        return found["importance_bound"], found["tube_upper_bound"]

    @torch.no_grad()
    def reference(self) -> tuple[Tensor, Tensor]:
        """See `Case`: the logarithm of the mean of `MANY` weights from q, two wider q's and the prior."""
        rng = SequenceRng(seed_of(0, "reference"), range(len(self.tokens_NL)))
        batch = self.model.scoring_batch(self.tokens_NL, 0, None, rng)
        q = self.model.infer(batch.tokens_BL, rng, weights_BL=batch.scored_BL)
        proposals = mixture.defended(q, MANY)
        found = bounds.multiple_importance_bound(batch.log_likelihood, proposals, batch.tokens_B, rng=rng)
        assert found.mc_var_B is not None
        return found.nats_B, found.mc_var_B


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """x = w z + s noise, coordinate by coordinate, of which everything is known; q is off and too narrow.

    Attributes:
        off: what is added to the mean of the exact posterior, in its standard deviations.
        narrower: what its log variance is lowered by.
    """

    off: float = 0.2
    narrower: float = 0.5
    weights: tuple[float, ...] = (0.3, 0.9, 1.5, 2.5)
    noise: float = 0.8

    @property
    def x_ND(self) -> Tensor:
        """The texts: numbers drawn from the model itself."""
        normal = torch.randn(TEXTS, len(self.weights), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return normal * self._w().square().add(self.noise**2).sqrt()

    def _w(self) -> Tensor:
        return torch.tensor(self.weights, dtype=torch.float64)

    def bounds(self, rng: SequenceRng) -> tuple[LikelihoodEstimate, LikelihoodEstimate]:
        """See `Case`."""
        w, x, s = self._w(), self.x_ND, self.noise
        variance = 1 / (1 + w.square() / s**2)
        mean_ND = variance * w * x / s**2 + self.off * variance.sqrt()
        log_variance = (variance.log() - self.narrower).expand_as(mean_ND)
        q = Posterior(mean=mean_ND[:, None, None], log_variance=log_variance[:, None, None])

        def log_likelihood(z_NYGD: Tensor) -> Tensor:
            return torch.distributions.Normal(w * z_NYGD[:, 0, 0], s).log_prob(x).sum(1)

        tokens_N = torch.full((TEXTS,), len(w))
        options: dict[str, Any] = {"draws": 8 * DRAWS, "rng": rng}
        lower = bounds.importance_bound(log_likelihood, q, tokens_N, **options)
        return lower, tube.tube_upper_bound(log_likelihood, q, lower, tokens_N, **options)

    def reference(self) -> tuple[Tensor, Tensor]:
        """See `Case`: in closed form."""
        scale = self._w().square().add(self.noise**2).sqrt()
        return torch.distributions.Normal(0.0, scale).log_prob(self.x_ND).sum(1), torch.zeros(TEXTS).double()


def _trained(name: str, cls: type[LatentModel], config: Any) -> Callable[[Path], Case]:
    def make(folder: Path) -> Case:
        settings: dict[str, Any] = {"budget": f"tokens={TOKENS}", "batch": 8, "lr": 4e-3, "warmup": 0.1, "ema": 0.99}
        place = folder / name.replace(", ", "-").replace(" ", "-")
        train_model(
            name, cls, config, TrainConfig(**settings), corpus=SOURCE.spec, tokenizer_name="bytes", output=place
        )
        loaded = checkpoint.load(place)
        texts = SOURCE.texts(SOURCE.sample(TEXTS, seed=0, purpose="two-sided"))
        tokens_NL = torch.from_numpy(np.stack(loaded.tokenizer.encode_batch(texts))).long()
        assert isinstance(loaded.model, LatentModel)
        return Trained(model=loaded.model, tokens_NL=tokens_NL)

    return make


_LTM = base_config(SOURCE)
_VAE = VAEConfig(decoder=_LTM.decoder, latents=4, kl_warmup=0.3, encoder_layers=1, encoder_hidden=176)
_UNHEARD = dataclasses.replace(_VAE, cross_start="zero", cross_rate=0.1)

CASES: Mapping[str, Callable[[Path], Case]] = {
    "linear-Gaussian": lambda folder: Linear(),
    "linear-Gaussian, q too narrow": lambda folder: Linear(off=0.5, narrower=2.0),
    "vae, latents hardly used": _trained("vae, latents hardly used", VAE, _UNHEARD),
    "vae": _trained("vae", VAE, _VAE),
    "ltm, T = 8": _trained("ltm, T = 8", LatentThoughtModel, _LTM),
}


def measured(case: Case, name: str, seed: int) -> dict[str, Any]:
    """Score all texts under one noise, or compute their reference; return totals in nats and their variances."""
    if seed == REFERENCE:
        nats_N, variance_N = case.reference()
        return {"name": name, "seed": seed, "nats": float(nats_N.sum()), "variance": float(variance_N.sum())}
    lower, upper = case.bounds(SequenceRng(seed, range(TEXTS)))
    record: dict[str, Any] = {"name": name, "seed": seed}
    for side, found in (("lower", lower), ("upper", upper)):
        assert found.mc_var_B is not None
        record |= {side: float(found.nats_B.sum()), f"{side}_variance": float(found.mc_var_B.sum())}
    tail_N, effective_N = (upper.reliability[which].numpy() for which in ("tail", "effective"))
    record |= {"tail": float(np.mean(tail_N)), "effective": float(np.median(effective_N))}
    return {**record, "trusted": reliability.trusted(upper.reliability)}


def table(records: Sequence[Mapping[str, Any]]) -> Table:
    """Return a row for each model, with the shares of noises under which its total is where it should be."""
    rows = Table(title=f"Totals of {TEXTS} texts; coverage in % of all noises, stated 95", box=box.MARKDOWN)
    headers = ("Model", "Noises", "Lower", "Upper", "Both", "log p", "Width", "Tail", "Effective", "Gate open")
    for column in headers:
        rows.add_column(column, justify="left" if column == "Model" else "right")
    for name in dict.fromkeys(record["name"] for record in records):
        own = [record for record in records if record["name"] == name and record["seed"] != REFERENCE]
        (known,) = (record for record in records if record["name"] == name and record["seed"] == REFERENCE)
        values = {key: np.array([record[key] for record in own]) for key in own[0] if key not in ("name", "key")}
        low, high = ((values[side], np.sqrt(values[f"{side}_variance"])) for side in ("lower", "upper"))
        within = {
            "lower": low[0] - ONE_SIDED * low[1] <= known["nats"],
            "upper": high[0] + ONE_SIDED * high[1] >= known["nats"],
            "both": (low[0] - TWO_SIDED * low[1] <= known["nats"]) & (high[0] + TWO_SIDED * high[1] >= known["nats"]),
        }
        error = math.sqrt(known["variance"])
        rows.add_row(
            name,
            str(len(own)),
            *(f"{100 * float(held.mean()):.1f}" for held in within.values()),
            f"{known['nats']:,.2f}" + (f" ± {error:.2f}" if error else ""),
            f"{float((high[0] - low[0]).mean()) / TEXTS:.4f}",
            f"{float(values['tail'].mean()):.2f}",
            f"{float(values['effective'].mean()):.1f}",
            f"{100 * float(values['trusted'].mean()):.0f}%",
        )
    return rows
