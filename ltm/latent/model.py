"""The Latent Thought Model (arXiv 2502.01567): z is inferred anew for each text, by gradient steps on it.

By default q(z|x) is fitted (fast learning); `inference=langevin` samples z by a Langevin chain instead. Shapes: B
texts, L tokens, Y layers, G latent vectors per layer (N_z = Y G), D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ltm.api import MINI_RECIPE, TINY_RECIPE, Cost, LikelihoodEstimate, Loss, Preset, Rng, published_recipe
from ltm.latent import bounds, langevin, reliability, tube
from ltm.latent.as_published import AsPublished
from ltm.latent.base import DRAWS, LatentConfig, LatentModel, ScoringBatch
from ltm.latent.langevin import LangevinConfig
from ltm.latent.likelihood_gradient import likelihood_gradient
from ltm.latent.posterior import LikelihoodGradient, Posterior, PosteriorConfig, fit
from ltm.nn.flops import StackFlops
from ltm.nn.output_head import mean_nll
from ltm.nn.transformer import TransformerConfig
from ltm.rng import SequenceRng


@dataclass(frozen=True, slots=True, kw_only=True)
class LTMConfig(LatentConfig):
    """A Latent Thought Model.

    Attributes:
        inference: `variational` fits a Gaussian q(z|x), as `posterior` says; `langevin` runs a chain, as `langevin`
            says, and uses neither `posterior` nor `kl_warmup`, `kl_weight_start` and `free_bits`, since it has no KL.
    """

    inference: Literal["variational", "langevin"] = "variational"
    posterior: PosteriorConfig = field(default_factory=PosteriorConfig)
    langevin: LangevinConfig = field(default_factory=LangevinConfig)

    def __post_init__(self) -> None:
        LatentConfig.__post_init__(self)  # slots create a new class, which a bare super() does not know
        if self.importance_proposals == "mixture" and self.posterior.tolerance:
            raise ValueError(
                "importance_proposals=mixture draws from the q of every step, so no fit may end early: set "
                "posterior.tolerance=0, or importance_proposals=single"
            )

    @property
    def fast_steps(self) -> int:
        """T_fast, the steps of `posterior`."""
        return self.posterior.steps

    def with_fast_steps(self, steps: int, *, all_of_them: bool = False) -> LTMConfig:
        """See `LatentConfig.with_fast_steps`."""
        posterior = self.posterior.with_all_steps() if all_of_them else self.posterior
        return dataclasses.replace(self, posterior=dataclasses.replace(posterior, steps=steps))


_QUICK: Mapping[str, Any] = {
    "posterior": dataclasses.replace(PosteriorConfig.NAMED["natural_gradient"], steps=3),
    "kl_warmup": 0.3,
    "cross_start": "zero",
    "cross_rate": 0.1,
}
"""Latents that cost the decoder nothing, fitted in few steps (docs/latents.md)."""


def _published_shape(layers: int, latents: int, steps: int) -> LTMConfig:
    decoder = TransformerConfig(layers=layers, width=512, heads=8, hidden=1376, max_length=1024, window=256)
    return LTMConfig(decoder=decoder, latents=latents, posterior=PosteriorConfig(steps=steps), kl_warmup=0.3)


class LatentThoughtModel(AsPublished, LatentModel):
    """The decoder, its prior, and inference of z by gradient steps."""

    family = "ltm"
    config_class = LTMConfig
    presets: ClassVar = {
        "ltm-tiny": Preset(
            config=LTMConfig(
                decoder=TransformerConfig(layers=3, width=128, heads=4, hidden=352, max_length=128, window=32),
                latents=6,
                **_QUICK,
            ),
            tokenizer="bpe-2048",
            training=TINY_RECIPE,
            trains_itself=True,
        ),
        "ltm-mini": Preset(
            config=LTMConfig(
                decoder=TransformerConfig(layers=3, width=224, heads=7, hidden=608, max_length=256, window=64),
                latents=12,
                **_QUICK,
            ),
            tokenizer="bpe-4096",
            training=MINI_RECIPE,
        ),
        "ltm-small": Preset(config=_published_shape(3, 24, 16), tokenizer="gpt2", training=published_recipe("7B")),
        "ltm-medium": Preset(config=_published_shape(6, 24, 16), tokenizer="gpt2", training=published_recipe("5.2B")),
        "ltm-large": Preset(config=_published_shape(12, 96, 64), tokenizer="gpt2", training=published_recipe("0.9B")),
    }

    config: LTMConfig

    @classmethod
    def miniature(cls, vocab_size: int, block_length: int) -> LTMConfig:
        """Two layers that share four latents of width 8."""
        decoder = TransformerConfig.smallest(block_length, window=2)
        return LTMConfig(vocab_size=vocab_size, decoder=decoder, latents=4, posterior=PosteriorConfig(steps=8))

    def headline(self, context: int | Tensor = 0) -> str:
        """For whole texts the fresh-noise ELBO, or the AIS bound with chains; for others the predictive bound."""
        name = LatentModel.headline(self, context)
        return "ais_bound" if name == "elbo" and self.config.inference == "langevin" else name

    @property
    def gaussian_posterior(self) -> bool:
        """See `LatentModel.gaussian_posterior`; Langevin chains have none."""
        return self.config.inference != "langevin"

    @property
    def inference_matmul(self) -> str:
        """See `LanguageModel.inference_matmul`."""
        config = self.config.langevin if self.config.inference == "langevin" else self.config.posterior
        return str(self.decoder.matmul_dtype(config.matmul)).removeprefix("torch.")

    def likelihood_gradient(
        self,
        tokens_BL: Tensor,
        weights_BL: Tensor | None,
        *,
        matmul: str,
        leak_gradients: bool = False,
        inputs_BL: Tensor | None = None,
    ) -> LikelihoodGradient:
        """See `ltm.latent.likelihood_gradient`."""
        return likelihood_gradient(
            self, tokens_BL, weights_BL, matmul=matmul, leak_gradients=leak_gradients, inputs_BL=inputs_BL
        )

    def infer(
        self,
        tokens_BL: Tensor,
        rng: SequenceRng,
        *,
        weights_BL: Tensor | None = None,
        kl_weight: float = 1.0,
        free_bits: float = 0.0,
        purpose: str = "fit",
        start: Posterior | None = None,
        config: PosteriorConfig | None = None,
        leak_gradients: bool = False,
        visited: list[Posterior] | None = None,
    ) -> Posterior:
        """Fit q(z|x) on the tokens that `weights_BL` does not zero; the decoder's weights receive no gradient.

        With `leak_gradients` they do, as in the published code: summed over tokens, straight into `.grad`. `visited`
        is that of `ltm.latent.posterior.fit`.
        """
        config = config or self.config.posterior
        return fit(
            self.likelihood_gradient(tokens_BL, weights_BL, matmul=config.matmul, leak_gradients=leak_gradients),
            self.latent_shape,
            config,
            rng,
            device=tokens_BL.device,
            dtype=self.decoder.embedding.dtype,
            kl_weight=kl_weight,
            free_bits=free_bits,
            purpose=purpose,
            start=start,
            visited=visited,
        )

    def visit(self, tokens_BL: Tensor, rng: SequenceRng, *, weights_BL: Tensor) -> list[Posterior]:
        """See `LatentModel.visit`."""
        visited: list[Posterior] = []
        q = self.infer(tokens_BL, rng, weights_BL=weights_BL, visited=visited)
        return visited or [q]

    def chains(
        self,
        tokens_BL: Tensor,
        weights_BL: Tensor | None,
        rng: SequenceRng,
        *,
        count: int = 1,
        purpose: str = "chain",
        weigh: bool = False,
        starts: Sequence[Tensor] | None = None,
    ) -> langevin.Chains:
        """Langevin chains towards p(z|x), x being the tokens that `weights_BL` does not zero."""
        return langevin.chains(
            self.likelihood_gradient(tokens_BL, weights_BL, matmul=self.config.langevin.matmul),
            self.latent_shape,
            self.config.langevin,
            rng.stream(purpose),
            count=count,
            device=tokens_BL.device,
            dtype=self.decoder.embedding.dtype,
            weigh=weigh,
            starts=starts,
        )

    def latents_after(
        self, tokens_BL: Tensor, rng: SequenceRng, *, weights_BL: Tensor, draws: int, before: Any = None
    ) -> tuple[Iterator[Tensor], Any]:
        """See `LatentModel.latents_after`; chains continue from where they ended."""
        if self.config.inference == "variational" or not tokens_BL.shape[1]:
            return LatentModel.latents_after(self, tokens_BL, rng, weights_BL=weights_BL, draws=draws, before=before)
        ends = [z for z, _ in self.chains(tokens_BL, weights_BL, rng, count=draws, starts=before)]
        return iter(ends), ends

    def training_loss(self, tokens_BL: Tensor, *, rng: Rng, progress: float = 1.0) -> Loss:
        """Algorithm 1: infer z (fast), then the reconstruction at that z for the decoder to descend (slow).

        z is a fresh draw from the fitted q, or the end of a Langevin chain.
        """
        rng, config = SequenceRng.of(rng, len(tokens_BL)), self.config
        metrics: dict[str, float] = {}
        if config.inference == "langevin":
            ((z, _),) = self.chains(tokens_BL, None, rng)
        else:
            metrics["kl_weight"] = config.kl_weight(progress)
            q = self.infer(
                tokens_BL,
                rng,
                kl_weight=metrics["kl_weight"],
                free_bits=config.free_bits,
                config=config.posterior.with_all_steps(),
                leak_gradients=config.posterior.leak_gradients,
            )
            if config.posterior.noise == "reused" and q.fitted_noise is not None:
                noise = q.fitted_noise
            else:
                noise = rng.stream("slow").normal(*self.latent_shape, dtype=q.mean.dtype, device=q.mean.device)
            metrics["kl_per_token"] = float(q.kl().sum()) / tokens_BL.numel()
            z = q.at(noise)
        h_BLD = self.hidden(self.decoder, self.prepare(self.decoder, tokens_BL), z)
        value = mean_nll(h_BLD, self.decoder.head(), tokens_BL)
        if "kl_per_token" in metrics:
            metrics["nelbo"] = float(value.detach()) + metrics["kl_per_token"]
        return Loss(value=value, metrics=metrics)

    @torch.no_grad()
    def log_likelihoods(
        self,
        tokens_BL: Tensor,
        *,
        context: int | Tensor = 0,
        lengths: Tensor | None = None,
        draws: int | None = None,
        rng: Rng,
        only: str | None = None,
    ) -> dict[str, LikelihoodEstimate]:
        """Whole texts: the bounds of `LatentModel`, `reused_noise_estimate`; continuations: `predictive_bound`.

        `reused_noise_estimate` fits q anew with noise drawn once, as the published code scores. With Langevin chains,
        whole texts have `ais_bound`, `langevin_estimate` and, from 25 chains on, `tube_upper_bound` instead.
        """
        batch, whole = (
            self.scoring_batch(tokens_BL, context, lengths, rng),
            self.headline(context) != "predictive_bound",
        )
        if self.config.inference == "langevin":
            return self.chain_bounds(batch, whole=whole, draws=langevin.CHAINS if draws is None else draws, only=only)
        estimates = self.gaussian_bounds(batch, whole=whole, draws=DRAWS if draws is None else draws, only=only)
        if whole and only in (None, "reused_noise_estimate") and self.config.posterior.steps:
            reused = self.config.posterior.with_reused_noise()
            q = self.infer(
                batch.tokens_BL, batch.rng, weights_BL=batch.scored_BL, config=reused, purpose="reused_noise_fit"
            )
            estimates["reused_noise_estimate"] = bounds.reused_noise_estimate(batch.log_likelihood, q, batch.tokens_B)
        return estimates

    def chain_bounds(
        self, batch: ScoringBatch, *, whole: bool, draws: int, only: str | None
    ) -> dict[str, LikelihoodEstimate]:
        """Likelihoods by `draws` Langevin chains: of whole texts, or of continuations with chains on their contexts."""
        seen_BL, weigh = batch.scored_BL if whole else batch.given_BL, whole and only != "langevin_estimate"
        ends = self.chains(batch.tokens_BL, seen_BL, batch.rng, count=draws, weigh=weigh)
        values_KB, log_ratios_KB = (
            torch.stack(each) for each in zip(*((batch.log_likelihood(z), ratio_B) for z, ratio_B in ends), strict=True)
        )
        if not whole:
            return {"predictive_bound": bounds.log_mean_exp(values_KB, batch.tokens_B)}
        ais = bounds.log_mean_exp(values_KB + log_ratios_KB, batch.tokens_B)
        estimates = {"ais_bound": ais, "langevin_estimate": langevin.langevin_estimate(values_KB, batch.tokens_B)}
        # Of fewer chains it is known beforehand that their tail cannot be judged.
        if only in (None, "tube_upper_bound") and draws >= reliability.LEAST_DRAWS:
            others = self.chains(
                batch.tokens_BL, seen_BL, batch.rng, count=draws, purpose="tube_upper_bound", weigh=True
            )
            log_w_KB = torch.stack([batch.log_likelihood(z) + ratio_B for z, ratio_B in others])
            estimates["tube_upper_bound"] = tube.tangent(log_w_KB, tube.log_psi(ais), batch.tokens_B)
        return {name: estimate for name, estimate in estimates.items() if only in (None, name)}

    def draw_latents(self, tokens_BL: Tensor, rng: SequenceRng, times: int) -> Tensor:
        """See `LatentModel.draw_latents`; with Langevin inference, z is the end of a chain."""
        if self.config.inference == "langevin" and tokens_BL.shape[1]:
            ((z, _),) = self.chains(tokens_BL, None, rng, purpose=f"chain {times}")
            return z
        return LatentModel.draw_latents(self, tokens_BL, rng, times)

    def inference_cost(self, length: int, draws: int) -> tuple[float, int]:
        """See `LatentModel.inference_cost`: T gradients, for one q or for every chain; with a tolerance, at most."""
        if not length:
            return 0.0, draws
        stack = StackFlops.of(self.config.decoder, self.vocab_size - 1, length, self.latent_shape[1])
        chains = self.config.inference == "langevin"
        gradients = draws * self.config.langevin.steps if chains else self.config.posterior.steps
        return length * (gradients * stack.latent_gradient + stack.first_attention), draws

    def cost(self, length: int) -> Cost:
        """The paper's convention, (T + 1)(6P + 6LdN), and what this code executes; see `ltm.nn.flops`.

        Scoring executes T steps for every text at most: with `posterior.tolerance` those that the bound's
        `fast_steps_B` says.
        """
        P, c = sum(p.numel() for p in self.parameters()), self.config.decoder
        chains = self.config.inference == "langevin"
        T = self.config.langevin.steps if chains else self.config.posterior.steps
        stack = StackFlops.of(c, self.vocab_size - 1, length, self.latent_shape[1])
        value = stack.after_first_attention + stack.head
        fast = T * stack.latent_gradient + stack.first_attention
        if chains:  # in scoring, the last point of a chain is weighed too, and every draw is a chain
            score = 2 * stack.first_attention + langevin.CHAINS * ((T + 1) * stack.latent_gradient + value)
        else:
            score = fast + stack.first_attention + DRAWS * value
        return Cost(
            parameters=P,
            paper_train_flops_per_token=(T + 1) * (6 * P + 6 * c.layers * c.width * (length + 1)),
            train_flops_per_token=fast + 3 * stack.forward,
            score_flops_per_token=score,
            generate_flops_per_token=stack.forward,
        )
