"""The Latent Thought Model (arXiv 2502.01567): p(z) = N(0, I), p(x|z) a Transformer that reads z by cross-attention.

Shapes: B texts, L tokens, Y layers, G latent vectors a layer (N_z = Y G), D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ltm import bounds
from ltm.api import Cost, Generations, LanguageModel, LikelihoodEstimate, Loss, Preset, Rng, Sampling
from ltm.cost import StackCost
from ltm.posterior import Posterior, PosteriorConfig, fit
from ltm.recipes import published_recipe, tiny_recipe
from ltm.rng import SequenceRng
from ltm.sampling import continue_prompts
from ltm.scoring import opened
from ltm.transformer import KeysValues, Transformer, TransformerConfig
from ltm.vocabulary import mean_nll, nll_gradient, token_nats, weighted_nll

DRAWS = 8
"""Default draws of the ELBO; the importance bound takes eight times as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LTMConfig:
    """A Latent Thought Model.

    Attributes:
        latents: N_z, latent vectors in all; layer l reads its own N_z / layers of them.
        latent_positions: RoPE positions of latent keys: `spread` evenly over max_length, or `published`:
            multiples of floor(max_length / N_z) from 0, the same few for every layer.
        kl_warmup: share of training over which the weight of the KL in the fit rises linearly to 1.
        kl_weight_start: where it rises from.
        free_bits: nats a latent vector, in training, below which the KL is not pushed further down.
    """

    vocab_size: int = 0
    decoder: TransformerConfig
    latents: int
    latent_positions: Literal["spread", "published"] = "spread"
    posterior: PosteriorConfig = field(default_factory=PosteriorConfig)
    kl_warmup: float = 0.0
    kl_weight_start: float = 0.02
    free_bits: float = 0.0

    def __post_init__(self) -> None:
        if self.latents < 1 or self.latents % self.decoder.layers:
            raise ValueError(f"latents {self.latents} must be a positive multiple of layers {self.decoder.layers}")
        if not 0 <= self.kl_warmup <= 1 or not 0 <= self.kl_weight_start <= 1 or self.free_bits < 0:
            raise ValueError("kl_warmup and kl_weight_start must be in [0, 1] and free_bits at least 0")

    def kl_weight(self, progress: float) -> float:
        """Weight of the KL in the fit when a share `progress` of training is done."""
        if progress >= self.kl_warmup:
            return 1.0
        return self.kl_weight_start + (1 - self.kl_weight_start) * progress / self.kl_warmup


class _Prepared(NamedTuple):
    """What of a pass does not depend on z: the first layer's self-attention and cross-attention queries."""

    x_BLD: Tensor
    first_queries: Tensor
    rotations_LC: Tensor


def _published_shape(layers: int, latents: int, steps: int) -> LTMConfig:
    decoder = TransformerConfig(layers=layers, width=512, heads=8, hidden=1376, max_length=1024, window=256)
    return LTMConfig(decoder=decoder, latents=latents, posterior=PosteriorConfig(steps=steps), kl_warmup=0.3)


class LatentThoughtModel(LanguageModel):
    """The decoder, its prior, and inference of z by fast learning."""

    family = "ltm"
    config_class = LTMConfig
    presets: ClassVar = {
        "ltm-tiny": Preset(
            config=LTMConfig(
                decoder=TransformerConfig(layers=3, width=128, heads=4, hidden=352, max_length=128, window=32),
                latents=6,
                posterior=PosteriorConfig(steps=8),
                kl_warmup=0.3,
            ),
            tokenizer="bpe-2048",
            training=tiny_recipe(),
            trains_itself=True,
        ),
        "ltm-small": Preset(config=_published_shape(3, 24, 16), tokenizer="gpt2", training=published_recipe("7B")),
        "ltm-medium": Preset(config=_published_shape(6, 24, 16), tokenizer="gpt2", training=published_recipe("5.2B")),
        "ltm-large": Preset(config=_published_shape(12, 96, 64), tokenizer="gpt2", training=published_recipe("0.9B")),
    }

    def __init__(self, config: LTMConfig):
        super().__init__()
        self.config = config
        self.decoder = Transformer(config.decoder, config.vocab_size, cross_attention=True)
        self.latent_shape = (config.decoder.layers, config.latents // config.decoder.layers, config.decoder.width)

    @classmethod
    def miniature(cls, vocab_size: int, block_length: int) -> LTMConfig:
        """Two layers that share four latents of width 8."""
        decoder = TransformerConfig(layers=2, width=8, heads=2, hidden=16, max_length=block_length + 1, window=2)
        return LTMConfig(vocab_size=vocab_size, decoder=decoder, latents=4, posterior=PosteriorConfig(steps=8))

    def headline(self, context: int | Tensor = 0) -> str:
        """The fresh-noise ELBO for whole texts; the predictive bound for continuations of a context."""
        return "elbo" if isinstance(context, int) and context == 0 else "predictive_bound"

    def latent_rotations(self, stack: Transformer) -> Tensor:
        """RoPE rotations of one layer's latent keys, (G, C/2)."""
        N, G, device = self.config.decoder.max_length, self.latent_shape[1], stack.embedding.device
        if self.config.latent_positions == "published":
            positions = torch.arange(G, device=device) * (N // self.config.latents)
        else:
            positions = (torch.arange(G, device=device, dtype=torch.float64) + 0.5) * N / G
        return stack.rotations(positions)

    def latent_keys_values(self, stack: Transformer, z_BYGD: Tensor) -> list[KeysValues]:
        """Cross-attention keys and values of every layer."""
        rotations_GC = self.latent_rotations(stack)
        return [b.latent_keys_values(z_BYGD[:, y], rotations_GC, stack.dtype) for y, b in enumerate(stack.blocks)]

    def prepare(self, stack: Transformer, tokens_BL: Tensor) -> _Prepared:
        """Everything of a pass over `tokens_BL` that does not depend on z, computed once for all steps and draws."""
        x = stack.embed(stack.with_bos(tokens_BL))
        rotations_LC = stack.rotations(torch.arange(tokens_BL.shape[1], device=tokens_BL.device))
        x, _ = stack.blocks[0].self_attend(x, rotations_LC, stack.dtype)
        return _Prepared(x, stack.blocks[0].cross_queries(x, rotations_LC, stack.dtype), rotations_LC)

    def hidden(self, stack: Transformer, prepared: _Prepared, z_BYGD: Tensor) -> Tensor:
        """Hidden states (B, L, D) after the final norm, given z."""
        x, queries, rotations_LC = prepared
        for layer, (block, latents) in enumerate(
            zip(stack.blocks, self.latent_keys_values(stack, z_BYGD), strict=True)
        ):
            if layer:
                x, _ = block.self_attend(x, rotations_LC, stack.dtype)
                queries = block.cross_queries(x, rotations_LC, stack.dtype)
            x = block.mlp(block.cross_attend(x, queries, latents, stack.dtype), stack.dtype)
        return stack.norm(x)

    def infer(
        self,
        tokens_BL: Tensor,
        rng: SequenceRng,
        *,
        weights_BL: Tensor | None = None,
        kl_weight: float = 1.0,
        free_bits: float = 0.0,
        purpose: str = "fit",
        config: PosteriorConfig | None = None,
        leak_gradients: bool = False,
    ) -> Posterior:
        """Fit q(z|x) on the tokens that `weights_BL` does not zero; the decoder's weights receive no gradient.

        With `leak_gradients` they do, as in the published code: summed over tokens, straight into `.grad`.
        """
        config = config or self.config.posterior
        master = self.decoder.embedding.dtype
        stack = self.decoder if leak_gradients else self.decoder.frozen(getattr(torch, config.matmul))
        with torch.set_grad_enabled(leak_gradients):
            prepared = self.prepare(stack, tokens_BL)
        head, targets_N = stack.head(), tokens_BL.flatten()
        weights_N = torch.ones_like(targets_N, dtype=master) if weights_BL is None else weights_BL.flatten().to(master)

        def gradient(z_BYGD: Tensor) -> Tensor:
            z_BYGD = z_BYGD.detach().requires_grad_()
            with torch.enable_grad():
                h_ND = self.hidden(stack, prepared, z_BYGD).flatten(0, 1)
            if leak_gradients:
                loss = weighted_nll(h_ND, stack.head(), targets_N, weights_N)
                torch.autograd.backward(loss, retain_graph=True)  # the prepared part serves every step
                assert z_BYGD.grad is not None
                return z_BYGD.grad
            (gradient_z,) = torch.autograd.grad(h_ND, z_BYGD, nll_gradient(h_ND, head, targets_N, weights_N))
            return gradient_z

        return fit(
            gradient,
            self.latent_shape,
            config,
            rng,
            device=tokens_BL.device,
            dtype=master,
            kl_weight=kl_weight,
            free_bits=free_bits,
            purpose=purpose,
        )

    def training_loss(self, tokens_BL: Tensor, *, rng: Rng, progress: float = 1.0) -> Loss:
        """Algorithm 1: fit q (fast), then the reconstruction at one fresh z ~ q for the decoder to descend (slow)."""
        rng = SequenceRng.of(rng, len(tokens_BL))
        kl_weight = self.config.kl_weight(progress)
        q = self.infer(
            tokens_BL,
            rng,
            kl_weight=kl_weight,
            free_bits=self.config.free_bits,
            leak_gradients=self.config.posterior.leak_gradients,
        )
        if self.config.posterior.noise == "reused" and q.fitted_noise is not None:
            noise = q.fitted_noise
        else:
            noise = rng.stream("slow").normal(*self.latent_shape, dtype=q.mean.dtype, device=q.mean.device)
        h_BLD = self.hidden(self.decoder, self.prepare(self.decoder, tokens_BL), q.at(noise))
        value = mean_nll(h_BLD, self.decoder.head(), tokens_BL)
        kl = float(q.kl().sum()) / tokens_BL.numel()
        return Loss(
            value=value, metrics={"kl_per_token": kl, "kl_weight": kl_weight, "nelbo": float(value.detach()) + kl}
        )

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
        """Whole texts: `elbo`, `importance_bound`, `reused_noise_estimate`. Continuations: `predictive_bound`.

        `reused_noise_estimate` fits q anew with noise drawn once, as the published code scores.
        """
        tokens_BL, given_BL, scored_BL = opened(tokens_BL, context, lengths, self.vocab_size)
        rng, draws = SequenceRng.of(rng, len(tokens_BL)), DRAWS if draws is None else draws
        tokens_B = scored_BL.sum(1)
        prepared, head = self.prepare(self.decoder, tokens_BL), self.decoder.head()

        def log_likelihood(z_BYGD: Tensor) -> Tensor:
            h_ND = self.hidden(self.decoder, prepared, z_BYGD).flatten(0, 1)
            nats_BL = token_nats(h_ND, head, tokens_BL.flatten()).view(tokens_BL.shape).double()
            return nats_BL.masked_fill(~scored_BL, 0.0).sum(1)

        if self.headline(context) == "predictive_bound":
            q = self.infer(tokens_BL, rng, weights_BL=given_BL)
            return {"predictive_bound": bounds.predictive_bound(log_likelihood, q, tokens_B, draws=8 * draws, rng=rng)}
        found = {}
        if only != "reused_noise_estimate":
            q = self.infer(tokens_BL, rng, weights_BL=scored_BL)
            if only in (None, "elbo"):
                found["elbo"] = bounds.elbo(log_likelihood, q, tokens_B, draws=draws, rng=rng)
            if only in (None, "importance_bound"):
                found["importance_bound"] = bounds.importance_bound(
                    log_likelihood, q, tokens_B, draws=8 * draws, rng=rng
                )
        if only in (None, "reused_noise_estimate") and self.config.posterior.steps:
            reused = self.config.posterior.with_reused_noise()
            q = self.infer(tokens_BL, rng, weights_BL=scored_BL, config=reused, purpose="reused_noise_fit")
            found["reused_noise_estimate"] = bounds.reused_noise_estimate(log_likelihood, q, tokens_B)
        return found

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, sampling: Sampling, rng: Rng
    ) -> Generations:
        """Ancestral: z from the prior without a prompt, from q fitted on the prompt with one; then token by token."""

        def infer(tokens_BL: Tensor, rows: SequenceRng, times: int) -> list[KeysValues]:
            noise = rows.stream(f"z {times}").normal(*self.latent_shape).to(self.decoder.embedding)
            if tokens_BL.shape[1]:
                noise = self.infer(tokens_BL, rows, purpose=f"fit {times}").at(noise)
            return self.latent_keys_values(self.decoder, noise)

        return continue_prompts(self.decoder, prompts, infer, max_new_tokens=max_new_tokens, sampling=sampling, rng=rng)

    def cost(self, length: int) -> Cost:
        """The paper's convention, (T + 1)(6P + 6LdN), and what this code executes; see `ltm.cost`."""
        P, T, c = sum(p.numel() for p in self.parameters()), self.config.posterior.steps, self.config.decoder
        stack = StackCost.of(c, self.vocab_size - 1, length, self.latent_shape[1])
        fast = T * (2 * stack.after_first_attention + 2 * stack.head) + stack.first_attention
        return Cost(
            parameters=P,
            paper_train_flops_per_token=(T + 1) * (6 * P + 6 * c.layers * c.width * (length + 1)),
            train_flops_per_token=fast + 3 * stack.forward,
            score_flops_per_token=fast + stack.first_attention + DRAWS * (stack.after_first_attention + stack.head),
            generate_flops_per_token=stack.forward,
        )
