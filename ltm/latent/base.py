"""The base of models with latent vectors z: p(z) p(x|z), where p(x|z) is a Transformer that reads z.

A subclass infers z from a text. Shapes: B texts, L tokens, Y layers, G latent vectors per layer (N_z = Y G),
D width, K draws.
"""

from __future__ import annotations

import dataclasses
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ltm.api import Generations, LanguageModel, LikelihoodEstimate, Rng, Sampling
from ltm.latent import bounds, mixture, tube
from ltm.latent.posterior import Posterior
from ltm.latent.prepared import Prepared
from ltm.nn.block import Block, KeysValues, RMSNorm
from ltm.nn.compiled import compiled
from ltm.nn.left_to_right import continue_prompts
from ltm.nn.output_head import token_nats
from ltm.nn.spans import prepare_batch
from ltm.nn.transformer import Transformer, TransformerConfig
from ltm.rng import SequenceRng

DRAWS = 8
"""Default draws of the ELBO; the importance bound takes eight times as many."""

TOKENS_AT_ONCE = 1024
"""Tokens up to which draws for short texts share a pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentConfig:
    """A decoder and its latents.

    Attributes:
        latents: N_z, the number of latent vectors; layer l reads its own N_z / layers of them.
        latent_positions: RoPE positions of latent keys: `spread` evenly over max_length, or `published`:
            multiples of floor(max_length / N_z) from 0, the same few for every layer.
        kl_warmup: share of training over which the weight of the KL in fitting q rises linearly to 1.
        kl_weight_start: the weight at the start of training.
        free_bits: nats per latent vector below which training does not push the KL further down.
        cross_start: initial weights of the cross-attentions' outputs: `random`, like those of other branches, or
            `zero`: the decoder begins as one without latents, and the noise of z reaches it only as it learns to use z.
        cross_rate: what multiplies the learning rate of the cross-attentions' weights. Adam moves them by the size of
            its rate even where their gradients are noise.
        importance_proposals: what the importance bound of whole texts draws z from: `single`, q alone, or `mixture`,
            the prior and the q's that a fit went through as well (`ltm.latent.mixture`). Both are for a Gaussian q.
    """

    vocab_size: int = 0
    decoder: TransformerConfig
    latents: int
    latent_positions: Literal["spread", "published"] = "spread"
    kl_warmup: float = 0.0
    kl_weight_start: float = 0.02
    free_bits: float = 0.0
    cross_start: Literal["random", "zero"] = "random"
    cross_rate: float = 1.0
    importance_proposals: Literal["single", "mixture"] = "single"

    @property
    def fast_steps(self) -> int | None:
        """Gradient steps in which q is fitted to each text; None where q is inferred without any."""
        return None

    def with_fast_steps(self, steps: int, *, all_of_them: bool = False) -> LatentConfig:
        """The same config with another number of fast steps, which no text may end early if `all_of_them`.

        Itself where there are none.
        """
        return self

    def __post_init__(self) -> None:
        if self.latents < 1 or self.latents % self.decoder.layers:
            raise ValueError(f"latents {self.latents} must be a positive multiple of layers {self.decoder.layers}")
        if not 0 <= self.kl_warmup <= 1 or not 0 <= self.kl_weight_start <= 1 or self.free_bits < 0:
            raise ValueError("kl_warmup and kl_weight_start must be in [0, 1] and free_bits at least 0")
        if self.cross_rate < 0:
            raise ValueError(f"cross_rate must be at least 0, found {self.cross_rate}")

    def kl_weight(self, progress: float) -> float:
        """Weight of the KL in fitting q when a share `progress` of training is done."""
        if progress >= self.kl_warmup:
            return 1.0
        return self.kl_weight_start + (1 - self.kl_weight_start) * progress / self.kl_warmup


@dataclass(frozen=True, slots=True)
class GivenLatents:
    """log p(x|z) of the scored tokens of B texts, as a function of z; see `bounds.LogLikelihood`."""

    model: LatentModel
    prepared: Prepared
    tokens_BL: Tensor
    scored_BL: Tensor

    @property
    def draws_at_once(self) -> int:
        """As many as make a pass worth its fixed costs; one for long texts."""
        return max(1, TOKENS_AT_ONCE // self.tokens_BL.numel()) if self.tokens_BL.numel() else 1

    def __call__(self, z_NYGD: Tensor) -> Tensor:
        """Nats of each text for each of n draws, (n B,), float64; draws in the outer order."""
        times, decoder = len(z_NYGD) // max(1, len(self.tokens_BL)), self.model.decoder
        tokens_NL, scored_NL = self.tokens_BL.repeat(times, 1), self.scored_BL.repeat(times, 1)
        h_NLD = self.model.hidden(decoder, self.prepared.repeated(times), z_NYGD)
        nats = token_nats(h_NLD.flatten(0, 1), decoder.head(), tokens_NL.flatten())
        return nats.view(tokens_NL.shape).double().masked_fill(~scored_NL, 0.0).sum(1)


class ScoringBatch(NamedTuple):
    """A prepared batch (`ltm.nn.spans.prepare_batch`), and log p(x | z) of its scored tokens."""

    tokens_BL: Tensor
    given_BL: Tensor
    scored_BL: Tensor
    tokens_B: Tensor
    rng: SequenceRng
    log_likelihood: bounds.LogLikelihood


class LatentModel(LanguageModel):
    """A prior N(0, I), the decoder, and the bounds of a Gaussian q(z|x); a subclass infers q."""

    config: LatentConfig

    def __init__(self, config: LatentConfig):
        super().__init__()
        self.config = config
        self.decoder = Transformer(config.decoder, config.vocab_size, cross_attention=True)
        if config.cross_start == "zero":
            for block in self.decoder.blocks:
                nn.init.zeros_(block.cross_out.weight)
        self.latent_shape = (config.decoder.layers, config.latents // config.decoder.layers, config.decoder.width)

    def rate_of(self, parameter: str) -> float:
        """See `LanguageModel.rate_of`."""
        return self.config.cross_rate if re.match(r"decoder\.blocks\.\d+\.cross_", parameter) else 1.0

    @classmethod
    def twin_config(cls, config: Any, *, vocab_size: int, block_length: int, width: int = 64, layers: int = 2) -> Any:
        """See `LanguageModel.twin_config`; with as many latents per layer, heard from the start.

        A twin that has not learned to use its latents would say nothing about how they are scored.
        """
        return dataclasses.replace(
            config,
            vocab_size=vocab_size,
            decoder=config.decoder.resized(layers=layers, width=width, max_length=block_length + 1),
            latents=layers * config.latents // config.decoder.layers,
            cross_start="random",
            cross_rate=1.0,
        )

    @property
    def gaussian_posterior(self) -> bool:
        """True if q(z|x) is the Gaussian that `infer` returns; False if z is a code or the end of a chain."""
        return True

    @abstractmethod
    def infer(
        self,
        tokens_BL: Tensor,
        rng: SequenceRng,
        *,
        weights_BL: Tensor | None = None,
        purpose: str = "fit",
        start: Posterior | None = None,
    ) -> Posterior:
        """q(z|x), x being the tokens that `weights_BL` does not zero; noise from the streams named `purpose`.

        Args:
            start: a q to continue from, for models that fit one.
        """

    def visit(self, tokens_BL: Tensor, rng: SequenceRng, *, weights_BL: Tensor) -> list[Posterior]:
        """The q after each step of `infer`, the last being what it returns; that one alone where there are no steps."""
        return [self.infer(tokens_BL, rng, weights_BL=weights_BL)]

    @abstractmethod
    def inference_cost(self, length: int, draws: int) -> tuple[float, int]:
        """FLOPs of `latents_after` for one text after `length` tokens, and the number of z's that it returns."""

    def latents_after(
        self, tokens_BL: Tensor, rng: SequenceRng, *, weights_BL: Tensor, draws: int, before: Any = None
    ) -> tuple[Iterator[Tensor], Any]:
        """Infer z from the tokens so far, to predict what follows them.

        Args:
            weights_BL: zero for tokens to ignore.
            before: the second value returned for fewer of the same tokens, to continue from.

        Returns:
            `draws` z's (B, Y, G, D), independent given the tokens, from the prior if there are none; or a single one
            if all would be the same. And what the next call may continue from.
        """
        if tokens_BL.shape[1]:
            q = before = self.infer(tokens_BL, rng, weights_BL=weights_BL, start=before)
        else:
            q = Posterior.prior(len(tokens_BL), self.latent_shape, like=self.decoder.embedding)
        stream = rng.stream("predictive_bound")
        return (q.at(stream.normal(*self.latent_shape).to(q.mean)) for _ in range(draws)), before

    def headline(self, context: int | Tensor = 0) -> str:
        """The fresh-noise ELBO for whole texts; the predictive bound for continuations of a context."""
        return "elbo" if isinstance(context, int) and context == 0 else "predictive_bound"

    def latent_positions(self, device: torch.device) -> Tensor:
        """RoPE positions of one layer's latents, (G,)."""
        N, G = self.config.decoder.max_length, self.latent_shape[1]
        if self.config.latent_positions == "published":
            return torch.arange(G, device=device) * (N // self.config.latents)
        return (torch.arange(G, device=device, dtype=torch.float64) + 0.5) * N / G

    def latent_rotations(self, stack: Transformer) -> Tensor:
        """RoPE rotations of one layer's latent keys, (G, C/2)."""
        return stack.rotations(self.latent_positions(stack.embedding.device))

    def latent_keys_values(self, stack: Transformer, z_BYGD: Tensor) -> list[KeysValues]:
        """Cross-attention keys and values of every layer."""
        rotations_GC = self.latent_rotations(stack)
        return [b.latent_keys_values(z_BYGD[:, y], rotations_GC, stack.dtype) for y, b in enumerate(stack.blocks)]

    def prepare(
        self, stack: Transformer, tokens_BL: Tensor, inputs_BL: Tensor | None = None, *, narrow: bool = False
    ) -> Prepared:
        """Compute the part of a pass over `tokens_BL` that does not depend on z, once for all steps and draws.

        Args:
            inputs_BL: the inputs of the pass; BOS and all tokens but the last if None.
            narrow: where passes run compiled, which is where memory limits them, the residual stream has the dtype of
                matrix products.
        """
        x = stack.embed(stack.with_bos(tokens_BL) if inputs_BL is None else inputs_BL)
        rotations_LC = stack.rotations(torch.arange(tokens_BL.shape[1], device=tokens_BL.device))
        before_latents = Block.before_latents
        if stack.compiles(x):
            x, before_latents = x.to(stack.dtype) if narrow else x, compiled(before_latents)
        x, queries = before_latents(stack.blocks[0], x, rotations_LC, stack.dtype, stack.block_mask(x))
        return Prepared(x, queries, rotations_LC)

    def hidden(self, stack: Transformer, prepared: Prepared, z_BYGD: Tensor) -> Tensor:
        """Hidden states (B, L, D) after the final norm, given z."""
        x, queries, rotations_LC = prepared
        visible, one_pass, after_latents, norm = (
            stack.block_mask(x),
            Block.forward,
            Block.after_latents,
            RMSNorm.forward,
        )
        if stack.compiles(x):
            one_pass, after_latents, norm = compiled(one_pass), compiled(after_latents), compiled(norm)
        for layer, (block, latents) in enumerate(
            zip(stack.blocks, self.latent_keys_values(stack, z_BYGD), strict=True)
        ):
            if layer:
                x, _ = one_pass(block, x, rotations_LC, stack.dtype, latents=latents, visible=visible)
            else:
                x = after_latents(block, x, queries, latents, stack.dtype)
        return norm(stack.norm, x)

    def scoring_batch(self, tokens_BL: Tensor, context: int | Tensor, lengths: Tensor | None, rng: Rng) -> ScoringBatch:
        """Prepare a batch for `log_likelihoods`; what does not depend on z is computed once for all draws."""
        tokens_BL, given_BL, scored_BL = prepare_batch(tokens_BL, context, lengths, self.vocab_size)
        log_likelihood = GivenLatents(self, self.prepare(self.decoder, tokens_BL), tokens_BL, scored_BL)
        rng = SequenceRng.of(rng, len(tokens_BL))
        return ScoringBatch(tokens_BL, given_BL, scored_BL, scored_BL.sum(1), rng, log_likelihood)

    def gaussian_bounds(
        self, batch: ScoringBatch, *, whole: bool, draws: int, only: str | None
    ) -> dict[str, LikelihoodEstimate]:
        """The `elbo`, `importance_bound` and `tube_upper_bound` of whole texts, or a `predictive_bound`."""
        tokens_BL, given_BL, scored_BL, tokens_B, rng, log_likelihood = batch
        if not whole:
            q = self.infer(tokens_BL, rng, weights_BL=given_BL)
            return {"predictive_bound": bounds.predictive_bound(log_likelihood, q, tokens_B, draws=8 * draws, rng=rng)}
        estimates: dict[str, LikelihoodEstimate] = {}
        if only not in (None, "elbo", "importance_bound", "tube_upper_bound"):
            return estimates
        mixed = only != "elbo" and self.config.importance_proposals == "mixture"
        visited = self.visit(tokens_BL, rng, weights_BL=scored_BL) if mixed else []
        q = visited[-1] if visited else self.infer(tokens_BL, rng, weights_BL=scored_BL)
        if only in (None, "elbo"):
            estimates["elbo"] = bounds.elbo(log_likelihood, q, tokens_B, draws=draws, rng=rng)
        if only == "elbo":
            return estimates
        if mixed:
            proposals = mixture.of_fit(visited, 8 * draws)
            importance = bounds.multiple_importance_bound(log_likelihood, proposals, tokens_B, rng=rng)
        else:
            importance = bounds.importance_bound(log_likelihood, q, tokens_B, draws=8 * draws, rng=rng)
        if only in (None, "importance_bound"):
            estimates["importance_bound"] = importance
        if only in (None, "tube_upper_bound"):
            estimates["tube_upper_bound"] = tube.tube_upper_bound(
                log_likelihood, q, importance, tokens_B, draws=8 * draws, rng=rng
            )
        return estimates

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
        """Whole texts: `elbo`, `importance_bound` and `tube_upper_bound`. Continuations: `predictive_bound`."""
        whole, batch = self.headline(context) == "elbo", self.scoring_batch(tokens_BL, context, lengths, rng)
        return self.gaussian_bounds(batch, whole=whole, draws=DRAWS if draws is None else draws, only=only)

    def draw_latents(self, tokens_BL: Tensor, rng: SequenceRng, times: int) -> Tensor:
        """Draw z to generate under, (B, Y, G, D): from the prior without tokens, from q(z|x) with some.

        Args:
            times: number of earlier draws for these texts; it names the noise.
        """
        noise = rng.stream(f"z {times}").normal(*self.latent_shape).to(self.decoder.embedding)
        return self.infer(tokens_BL, rng, purpose=f"fit {times}").at(noise) if tokens_BL.shape[1] else noise

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, sampling: Sampling, rng: Rng
    ) -> Generations:
        """Draw z from the prior, or infer it from the prompt if there is one; then draw token by token."""

        def infer(tokens_BL: Tensor, rows: SequenceRng, times: int) -> list[KeysValues]:
            return self.latent_keys_values(self.decoder, self.draw_latents(tokens_BL, rows, times))

        return continue_prompts(self.decoder, prompts, infer, max_new_tokens=max_new_tokens, sampling=sampling, rng=rng)
