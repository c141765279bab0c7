"""Masked diffusion language model, MDLM (arXiv 2406.07524): a bidirectional Transformer predicts masked tokens.

The SUBS parameterisation holds by structure: the head has no row for the mask, and only masked positions are predicted.
The schedule is log-linear (the mask rate is the time), the network is not conditioned on it, and the bound is that of
continuous time; see `masking.py`. Shapes: B sequences, L tokens, N masked or wanted tokens, D width, V vocabulary.

Sizes: the embedding is tied and counted once, with a row for the mask; there is no time embedding. At depths
4 / 8 / 16 the models thus have 512 parameters more than the AR control: within 0.1% of ltm-small / medium / large.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from baselines.diffusion.masking import DRAWS, diffusion_bound, draw_masks, spread, visible_keys
from baselines.diffusion.unmasking import CanvasModel, check_settings, unmask
from ltm.api import Cost, LikelihoodEstimate, Loss, Preset, Rng, Sampling, published_recipe, tiny_recipe
from ltm.nn.dit import DiTConfig, decoder_of
from ltm.nn.flops import StackFlops, paper_train_flops
from ltm.nn.output_head import logits_of, token_nats, weighted_nll
from ltm.nn.spans import prepare_batch
from ltm.nn.transformer import TransformerConfig
from ltm.published.described import Described
from ltm.published.opening import Published
from ltm.published_protocol import EPSILON, PublishedProtocol, disturbed, times
from ltm.rng import SequenceRng, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class MDLMConfig:
    """A bidirectional Transformer, and how it generates, which affects neither training nor scoring.

    Attributes:
        sampler: `first_hitting`, one token per evaluation and exact; `ancestral`, one evaluation for each of
            `sampling_steps` equal steps of the mask rate; `cached`, the same samples without the evaluations that
            reveal nothing.
        stride: new tokens of each canvas after the first, if a text exceeds a block; half a block if none.

    Raises:
        ValueError: see `check_settings`.
    """

    vocab_size: int = 0
    decoder: TransformerConfig | DiTConfig
    sampler: Literal["ancestral", "cached", "first_hitting"] = "first_hitting"
    sampling_steps: int = 1000
    stride: int | None = None

    def __post_init__(self) -> None:
        check_settings("mdlm", self.decoder, self.sampling_steps, self.stride)


def _matched_shape(layers: int) -> MDLMConfig:
    return MDLMConfig(
        decoder=TransformerConfig(layers=layers, width=512, heads=8, hidden=1376, max_length=1024, window=None)
    )


class MDLM(Published, CanvasModel):
    """Absorbing diffusion; its bound is a weighted mean of cross-entropies of masked tokens."""

    family = "mdlm"
    config_class = MDLMConfig
    presets: ClassVar = {
        "mdlm-tiny": Preset(
            config=MDLMConfig(
                decoder=TransformerConfig(layers=4, width=128, heads=4, hidden=352, max_length=128, window=None)
            ),
            tokenizer="bpe-2048",
            training=tiny_recipe(),
            trains_itself=True,
        ),
        "mdlm-small": Preset(config=_matched_shape(4), tokenizer="gpt2", training=published_recipe("7B")),
        "mdlm-medium": Preset(config=_matched_shape(8), tokenizer="gpt2", training=published_recipe("5.2B")),
        "mdlm-large": Preset(config=_matched_shape(16), tokenizer="gpt2", training=published_recipe("0.9B")),
    }

    def __init__(self, config: MDLMConfig):
        super().__init__()
        self.config = config
        self.decoder = decoder_of(config.decoder, config.vocab_size, extra_inputs=1, causal=False)

    @classmethod
    def of_published(cls, described: Described) -> MDLMConfig:
        """See `Published.of_published`."""
        described.refuse_others(cls.family, told=False)
        return MDLMConfig(vocab_size=described.rows, decoder=described.decoder)

    @classmethod
    def miniature(cls, vocab_size: int, block_length: int) -> MDLMConfig:
        """Two layers of width 8."""
        decoder = TransformerConfig.smallest(block_length, window=None)
        return MDLMConfig(vocab_size=vocab_size, decoder=decoder)

    def published_protocol(self) -> PublishedProtocol:
        """See `ScoresAsPublished`."""
        return PublishedProtocol(
            source="kuleshov-group/mdlm at c112c52",
            eos_after_rows=True,
            wrapped=True,
            given=0,
            mean_of_exp=False,
            told="one time per block on [1e-3, 1], weight 1 / t, the first and last position masked like any other",
        )

    @torch.no_grad()
    def published_nats(self, ids_BN: Tensor, rng: SequenceRng) -> Tensor:
        """See `ScoresAsPublished`."""
        t_B1 = times(rng).to(ids_BN.device)
        return self.published_costs(ids_BN, disturbed(rng, (1 - EPSILON) * t_B1.expand(ids_BN.shape)), t_B1).sum(1)

    def published_costs(self, ids_BN: Tensor, masked_BN: Tensor, t_B1: Tensor) -> Tensor:
        """Return -log p / t of masked positions, float64 (B, N); texts have no BOS, and any position may be masked."""
        h_MD = self.decoder(ids_BN.masked_fill(masked_BN, self.mask_id))[masked_BN]
        return spread(-token_nats(h_MD, self.decoder.head(), ids_BN[masked_BN]), masked_BN) / t_B1

    def hidden_states(self, canvas_BL: Tensor, wanted_BL: Tensor, visible: Tensor | None = None) -> Tensor:
        """Return hidden states (N, D) of the wanted positions, row-major, for texts with mask ids in them."""
        return self.decoder(self.decoder.after_bos(canvas_BL), visible=visible)[:, 1:][wanted_BL]

    def training_loss(self, tokens_BL: Tensor, *, rng: Rng, progress: float = 1.0) -> Loss:
        """Return minus the bound's estimate from one draw, in mean nats per token (continuous-time NELBO)."""
        everything = torch.ones_like(tokens_BL, dtype=torch.bool)
        rng = SequenceRng.of(rng, len(tokens_BL))
        (masks,) = draw_masks(everything, rng, draws=1, block_length=self.block_length)
        h_ND = self.hidden_states(tokens_BL.masked_fill(masks.masked_BL, self.mask_id), masks.masked_BL)
        weights_N = masks.weight_BL[masks.masked_BL] / tokens_BL.numel()
        return Loss(value=weighted_nll(h_ND, self.decoder.head(), tokens_BL[masks.masked_BL], weights_N))

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
        """Return the continuous-time bound; given tokens are never masked, so it is conditional on them."""
        tokens_BL, given_BL, scored_BL = prepare_batch(tokens_BL, context, lengths, self.vocab_size)
        rng, draws = SequenceRng.of(rng, len(tokens_BL)), DRAWS if draws is None else draws
        visible = visible_keys(given_BL | scored_BL)
        nats_per_draw: list[Tensor] = []
        for masks in draw_masks(scored_BL, rng, draws=draws, block_length=self.block_length):
            h_ND = self.hidden_states(tokens_BL.masked_fill(masks.masked_BL, self.mask_id), masks.masked_BL, visible)
            nats_BL = torch.zeros_like(masks.weight_BL)
            nats_BL[masks.masked_BL] = token_nats(h_ND, self.decoder.head(), tokens_BL[masks.masked_BL]).double()
            nats_per_draw.append((masks.weight_BL * nats_BL).sum(1))
        return diffusion_bound(torch.stack(nats_per_draw), scored_BL.sum(1))

    def predict(self, canvas_BL: Tensor, rate_B: Tensor, wanted_BL: Tensor) -> Tensor:
        """Return logits (N, V - 1) of the wanted positions; the rate is ignored."""
        return logits_of(self.hidden_states(canvas_BL, wanted_BL), self.decoder.head())

    def fill(self, canvas_BL: Tensor, noise: Stream, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """Reveal the masks with the configured sampler; see `CanvasModel.fill`."""
        c = self.config
        rates = [1 - step / c.sampling_steps for step in range(c.sampling_steps + 1)]
        return unmask(
            self.predict,
            canvas_BL,
            self.mask_id,
            rates,
            noise,
            sampler=c.sampler,
            block_length=self.block_length,
            sampling=sampling,
        )

    def cost(self, length: int) -> Cost:
        """Count the papers' 6P + 12LdN, and the FLOPs that this code executes; generation fills one canvas.

        The head runs for masked tokens only, on average (n + 1) / 2 of n.
        """
        P, c = sum(p.numel() for p in self.parameters()), self.config.decoder
        stack = StackFlops.of(c, self.vocab_size - 1, length + 1)
        blocks = (stack.forward - stack.head) * (length + 1) / length  # BOS is computed but is not a token
        forward = blocks + stack.head * (length + 1) / (2 * length)
        steps = self.config.sampling_steps
        evaluations = {
            "first_hitting": length,
            "ancestral": steps,
            "cached": steps * (1 - (1 - 1 / steps) ** length),
        }[self.config.sampler]
        return Cost(
            parameters=P,
            paper_train_flops_per_token=paper_train_flops(P, c.layers, c.width, length + 1),
            train_flops_per_token=3 * forward,
            score_flops_per_token=DRAWS * forward,
            generate_flops_per_token=evaluations * blocks + stack.head,
        )
