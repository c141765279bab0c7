"""The LTM's decoder with an amortised encoder: q(z|x) in one pass instead of by gradient steps (arXiv 1312.6114).

The encoder reads BOS, the text and one learned query per latent vector, bidirectionally, and shares the decoder's
embedding. Its output at a query is a Gaussian's mean and log variance or, with `bottleneck=vq`, a code. Depths of
decoder + encoder of 2 + 1 / 2 + 1 / 4 + 2 / 8 + 4 match ltm-tiny / small / medium / large in parameters within 0.5%.
The tied embedding, which is also the head and the encoder's, is counted once; queries and, for vae-vq-tiny, codebook
and code prior are included. Shapes: B texts, L tokens, Y layers, G latent vectors per layer (N = Y G), D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from baselines.vq import Codebook, VQConfig
from ltm.api import MINI_RECIPE, TINY_RECIPE, Cost, LikelihoodEstimate, Loss, Preset, Rng, published_recipe
from ltm.latent.base import DRAWS, LatentConfig, LatentModel, ScoringBatch
from ltm.latent.posterior import Posterior
from ltm.nn.block import Linear
from ltm.nn.flops import StackFlops
from ltm.nn.output_head import mean_nll
from ltm.nn.transformer import Stack, TransformerConfig
from ltm.rng import SequenceRng


@dataclass(frozen=True, slots=True, kw_only=True)
class VAEConfig(LatentConfig):
    """An amortised latent-variable model.

    Attributes:
        encoder_layers, encoder_hidden: depth and hidden size of the encoder; width and heads are the decoder's.
        bottleneck: `gaussian`, or `vq`: codes with a learned prior, without KL warm-up and free bits.
        vq: codebook and prior of `bottleneck=vq`.
    """

    encoder_layers: int
    encoder_hidden: int
    bottleneck: Literal["gaussian", "vq"] = "gaussian"
    vq: VQConfig = field(default_factory=VQConfig)

    def __post_init__(self) -> None:
        LatentConfig.__post_init__(self)  # slots create a new class, which a bare super() does not know
        _ = self.encoder, self.vq.prior(self.latents)  # run their checks

    @property
    def encoder(self) -> TransformerConfig:
        """Shape of the encoder's stack."""
        return dataclasses.replace(self.decoder, layers=self.encoder_layers, hidden=self.encoder_hidden, window=None)


def _matched_shape(layers: int, latents: int, encoder_layers: int, encoder_hidden: int) -> VAEConfig:
    return VAEConfig(
        decoder=TransformerConfig(layers=layers, width=512, heads=8, hidden=1376, max_length=1024, window=256),
        latents=latents,
        kl_warmup=0.3,
        encoder_layers=encoder_layers,
        encoder_hidden=encoder_hidden,
    )


_TINY = TransformerConfig(layers=2, width=128, heads=4, hidden=352, max_length=128, window=32)
_MINI = TransformerConfig(layers=2, width=224, heads=7, hidden=608, max_length=256, window=64)


def _shared(
    decoder: TransformerConfig, latents: int, encoder_hidden: int, bottleneck: Literal["gaussian", "vq"] = "gaussian"
) -> VAEConfig:
    return VAEConfig(
        decoder=decoder,
        latents=latents,
        kl_warmup=0.3,
        encoder_layers=1,
        encoder_hidden=encoder_hidden,
        bottleneck=bottleneck,
        cross_start="zero",
        cross_rate=0.1,
    )


def _tiny(config: VAEConfig) -> Preset:
    return Preset(config=config, tokenizer="bpe-2048", training=TINY_RECIPE, trains_itself=True)


def _mini(config: VAEConfig) -> Preset:
    return Preset(config=config, tokenizer="bpe-4096", training=MINI_RECIPE)


class VAE(LatentModel):
    """The decoder, and an encoder that gives q(z|x) in one pass."""

    family = "vae"
    config_class = VAEConfig
    presets: ClassVar = {
        "vae-tiny": _tiny(_shared(_TINY, 6, 432)),
        "vae-vq-tiny": _tiny(_shared(_TINY, 6, 360, "vq")),
        "vae-mini": _mini(_shared(_MINI, 12, 752)),
        "vae-vq-mini": _mini(_shared(_MINI, 12, 808, "vq")),
        "vae-small": Preset(config=_matched_shape(2, 24, 1, 1712), tokenizer="gpt2", training=published_recipe("7B")),
        "vae-medium": Preset(
            config=_matched_shape(4, 24, 2, 1888), tokenizer="gpt2", training=published_recipe("5.2B")
        ),
        "vae-large": Preset(config=_matched_shape(8, 96, 4, 1968), tokenizer="gpt2", training=published_recipe("0.9B")),
    }
    config: VAEConfig

    def __init__(self, config: VAEConfig):
        super().__init__(config)
        D = config.decoder.width
        self.encoder = Stack(config.encoder, causal=False)
        self.queries = nn.Parameter(torch.randn(config.latents, D) * 0.02)
        if config.bottleneck == "gaussian":
            self.to_posterior = Linear(D, 2 * D, 0.0)  # q starts at the prior
        else:
            self.codebook = Codebook(config.vq, config.latents, D)

    @classmethod
    def miniature(cls, vocab_size: int, block_length: int) -> VAEConfig:
        """Two layers of decoder, one of encoder, and four latents of width 8."""
        decoder = TransformerConfig.smallest(block_length, window=2)
        return VAEConfig(vocab_size=vocab_size, decoder=decoder, latents=4, encoder_layers=1, encoder_hidden=16)

    @classmethod
    def twin_config(cls, config: Any, *, vocab_size: int, block_length: int, width: int = 64, layers: int = 2) -> Any:
        """See `LanguageModel.twin_config`; one layer of encoder, with hidden size in proportion to the width."""
        config = dataclasses.replace(
            config, encoder_layers=1, encoder_hidden=round(config.encoder_hidden * width / config.decoder.width)
        )
        return super().twin_config(config, vocab_size=vocab_size, block_length=block_length, width=width, layers=layers)

    @property
    def gaussian_posterior(self) -> bool:
        """See `LatentModel.gaussian_posterior`; q is a point mass on codes with `bottleneck=vq`."""
        return self.config.bottleneck != "vq"

    def encode(self, tokens_BL: Tensor, visible_BL: Tensor | None = None) -> Tensor:
        """Return hidden states (B, N, D) at the queries, which see BOS, each other and the visible tokens."""
        (B, L), N, device = tokens_BL.shape, self.config.latents, tokens_BL.device
        text_BLD = self.decoder.embed(self.decoder.after_bos(tokens_BL))
        inputs = torch.cat([text_BLD, self.queries.expand(B, -1, -1)], 1)
        # A query has the position that the decoder gives to its latent.
        latents = self.latent_positions(device).double().repeat(self.latent_shape[0])
        positions = torch.cat([torch.arange(L + 1, device=device), latents])
        visible = None
        if visible_BL is not None:
            always = visible_BL.new_ones(B, 1)
            visible = torch.cat([always, visible_BL, always.expand(B, N)], 1)[:, None, None]
        h, _ = self.encoder.run(inputs, positions_L=positions, visible=visible)
        return h[:, L + 1 :]

    def infer(
        self,
        tokens_BL: Tensor,
        rng: SequenceRng,
        *,
        weights_BL: Tensor | None = None,
        purpose: str = "fit",
        start: Posterior | None = None,
    ) -> Posterior:
        """Return q(z|x) from one pass of the encoder; `rng`, `purpose` and `start` are not used."""
        h_BND = self.encode(tokens_BL, None if weights_BL is None else weights_BL.bool())
        mean, log_variance = self.to_posterior(h_BND, h_BND.dtype).unflatten(1, self.latent_shape[:2]).chunk(2, -1)
        return Posterior(mean=mean, log_variance=log_variance)

    def codes(self, tokens_BL: Tensor, visible_BL: Tensor | None = None) -> Tensor:
        """Return the codes of each text's visible tokens, (B, N)."""
        return self.codebook.codes(self.encode(tokens_BL, visible_BL))

    def training_loss(self, tokens_BL: Tensor, *, rng: Rng, progress: float = 1.0) -> Loss:
        """Return the negative ELBO at one z ~ q in nats per token; its KL is weighted and has free bits."""
        rng, tokens = SequenceRng.of(rng, len(tokens_BL)), tokens_BL.numel()
        if self.config.bottleneck == "vq":
            codes_BN, z_BND, extra = self.codebook.quantise(self.encode(tokens_BL))
            z, kl = z_BND.unflatten(1, self.latent_shape[:2]), self.codebook.prior_loss(codes_BN) / tokens
            regulariser, metrics = kl + extra, {"codes_used": float(codes_BN.unique().numel())}
        else:
            q, kl_weight = self.infer(tokens_BL, rng), self.config.kl_weight(progress)
            z = q.at(rng.stream("slow").normal(*self.latent_shape, dtype=q.mean.dtype, device=q.mean.device))
            kl_BYG, metrics = q.kl(), {"kl_weight": kl_weight}
            kl = kl_BYG.sum() / tokens
            regulariser = kl_weight * kl_BYG.clamp(min=self.config.free_bits).sum() / tokens
        h_BLD = self.hidden(self.decoder, self.prepare(self.decoder, tokens_BL), z)
        nll = mean_nll(h_BLD, self.decoder.head(), tokens_BL)
        metrics |= {"kl_per_token": float(kl.detach()), "nelbo": float((nll + kl).detach())}
        return Loss(value=nll + regulariser.to(nll), metrics=metrics)

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
        """Return the bounds of `LatentModel`, or for codes `elbo` or `predictive_bound`, without Monte Carlo error."""
        whole, batch = self.headline(context) == "elbo", self.scoring_batch(tokens_BL, context, lengths, rng)
        if self.config.bottleneck == "vq":
            return self.code_bounds(batch, whole=whole, only=only)
        return self.gaussian_bounds(batch, whole=whole, draws=DRAWS if draws is None else draws, only=only)

    def code_bounds(self, batch: ScoringBatch, *, whole: bool, only: str | None) -> dict[str, LikelihoodEstimate]:
        """Return log p(x|c) + log p(c), one term of the sum p(x); or log p(y|c), given the codes c of the context."""
        codes_BN = self.codes(batch.tokens_BL, batch.scored_BL if whole else batch.given_BL)
        reconstruction_B = batch.log_likelihood(self.code_vectors(codes_BN))
        if not whole:
            bound = LikelihoodEstimate(nats_B=reconstruction_B, tokens_B=batch.tokens_B, kind="lower_bound")
            return {"predictive_bound": bound}
        log_prior_B = self.codebook.log_prior(codes_BN)
        bound = LikelihoodEstimate(
            nats_B=reconstruction_B + log_prior_B,
            tokens_B=batch.tokens_B,
            kind="lower_bound",
            terms={"reconstruction": reconstruction_B, "-kl": log_prior_B},  # KL(point mass || p) = -log p(c)
        )
        return {"elbo": bound} if only in (None, "elbo") else {}

    def code_vectors(self, codes_BN: Tensor) -> Tensor:
        """Return the z of given codes, (B, Y, G, D)."""
        return self.codebook.latents(codes_BN).unflatten(1, self.latent_shape[:2])

    def draw_latents(self, tokens_BL: Tensor, rng: SequenceRng, times: int) -> Tensor:
        """See `LatentModel.draw_latents`; codes are drawn from their prior, or are those of the prompt."""
        if self.config.bottleneck == "gaussian":
            return LatentModel.draw_latents(self, tokens_BL, rng, times)
        if tokens_BL.shape[1]:
            return self.code_vectors(self.codes(tokens_BL))
        return self.code_vectors(self.codebook.sample(self.config.latents, rng, f"codes {times}"))

    def latents_after(
        self, tokens_BL: Tensor, rng: SequenceRng, *, weights_BL: Tensor, draws: int, before: Any = None
    ) -> tuple[Iterator[Tensor], Any]:
        """See `LatentModel.latents_after`; codes are drawn from the prior, or are those of the tokens."""
        if self.config.bottleneck == "gaussian":
            return LatentModel.latents_after(self, tokens_BL, rng, weights_BL=weights_BL, draws=draws, before=before)
        if tokens_BL.shape[1]:
            return iter([self.code_vectors(self.codes(tokens_BL, weights_BL.bool()))]), None
        drawn = (self.codebook.sample(self.config.latents, rng, f"codes {k}") for k in range(draws))
        return map(self.code_vectors, drawn), None

    def inference_cost(self, length: int, draws: int) -> tuple[float, int]:
        """See `LatentModel.inference_cost`: one pass of the encoder for any number of draws."""
        D, N, gaussian = self.config.decoder.width, self.config.latents, self.config.bottleneck == "gaussian"
        if not length:
            return 0.0 if gaussian else draws * self.codebook.flops_per_text(N)[1], draws
        positions = length + 1 + N
        encoder = StackFlops.of(self.config.encoder, 0, positions).forward * positions
        if gaussian:
            return encoder + 4 * D * D * N, draws
        return encoder + self.codebook.flops_per_text(N)[0], 1

    def cost(self, length: int) -> Cost:
        """Count the papers' 6P, 6LdN for the decoder and 12LdN for the encoder, and the FLOPs that this code executes.

        The decoder counts as an LTM without fast steps, the encoder as an AR row.
        """
        P, c, N = sum(p.numel() for p in self.parameters()), self.config.decoder, self.config.latents
        D, positions = c.width, length + 1 + N
        decoder = StackFlops.of(c, self.vocab_size - 1, length, self.latent_shape[1])
        encoder = StackFlops.of(self.config.encoder, 0, positions).forward * positions / length
        if self.config.bottleneck == "gaussian":
            encoder, search, prior, draws = encoder + 4 * D * D * N / length, 0.0, 0.0, DRAWS
        else:
            search, prior = (flops / length for flops in self.codebook.flops_per_text(N))
            draws = 1
        once, value = encoder + decoder.first_attention, decoder.after_first_attention + decoder.head
        return Cost(
            parameters=P,
            paper_train_flops_per_token=6 * P + 6 * D * (length + 1) * (c.layers + 2 * self.config.encoder_layers),
            train_flops_per_token=3 * (once + value + prior) + search,
            score_flops_per_token=once + search + prior + draws * value,
            generate_flops_per_token=decoder.forward + prior,
        )
