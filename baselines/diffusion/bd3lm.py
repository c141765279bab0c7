"""Block diffusion, BD3-LM (arXiv 2503.09573): autoregressive over blocks, masked diffusion within each block.

Positions 0 .. N-1 hold BOS and the text, in blocks of S; BOS is the first position of the first block and always given.
log p(x) is at least the sum over blocks of a masked-diffusion bound given all earlier blocks; see `masking.py`. With
S = 1 a block is one mask after the clean past, nothing is left to draw, and the value is the exact log-likelihood of
an autoregressive model; with S = N it is the bound of MDLM.

The published network runs once over the masked text and the clean text side by side, 2N positions, under a mask of
2N x 2N. Clean positions never attend to masked ones, so this code makes two passes: over the clean text, where each
position sees its own block and earlier ones; then over the masked text, where each position sees its own block and the
clean keys of earlier ones. Scoring runs the first pass once for all draws. No later block sees the last one, so the
clean pass leaves it out.

Sizes: the embedding is tied and counted once, with a row for the mask; there is no time embedding. At depths
4 / 8 / 16 the models thus have 512 parameters more than the AR control: within 0.1% of ltm-small / medium / large.
Shapes: B sequences, L tokens, N positions, S positions per block, M masked tokens, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines import duel
from baselines.diffusion.block_sampling import continue_in_blocks
from baselines.diffusion.masking import DRAWS, MaskedModel, diffusion_bound, draw_masks, spread
from ltm.api import (
    MINI_RECIPE,
    TINY_RECIPE,
    Cost,
    Generations,
    LikelihoodEstimate,
    Loss,
    Preset,
    Rng,
    Sampling,
    published_recipe,
)
from ltm.errors import UserError
from ltm.nn.block import KeysValues
from ltm.nn.dit import DiTConfig, decoder_of
from ltm.nn.flops import StackFlops, paper_train_flops
from ltm.nn.output_head import logits_of, token_nats, weighted_nll
from ltm.nn.spans import prepare_batch
from ltm.nn.transformer import TransformerConfig
from ltm.published.described import Described
from ltm.published.opening import Published
from ltm.published_protocol import PublishedProtocol, disturbed, times
from ltm.rng import SequenceRng


@dataclass(frozen=True, slots=True, kw_only=True)
class BD3LMConfig:
    """A Transformer over blocks.

    Attributes:
        block_size: S, positions per block; must divide `decoder.max_length`, the N positions of BOS and text.
        clip_low, clip_high: training masks shares of a block's tokens from this interval only (the paper's clipped
            schedules); scoring always uses all shares, since the bound needs them. `benchmarks.clipping_search`
            searches for the interval.
        unmasking: `any_order`, scored by the bound and generated in random order; or a rule that picks the next
            position of each block, under which the model is exact (`baselines.duel`).

    Raises:
        ValueError: a window, a `block_size` that does not divide N, or not 0 <= clip_low < clip_high <= 1.
    """

    vocab_size: int = 0
    decoder: TransformerConfig | DiTConfig
    block_size: int = 16
    clip_low: float = 0.0
    clip_high: float = 1.0
    unmasking: duel.Unmasking = "any_order"

    def __post_init__(self) -> None:
        N = self.decoder.max_length
        if self.decoder.window is not None:
            raise ValueError(f"bd3lm attends by blocks; set decoder.window=none, found {self.decoder.window}")
        if self.block_size < 1 or N % self.block_size:
            divisors = ", ".join(str(size) for size in range(1, N + 1) if N % size == 0)
            raise ValueError(
                f"block_size must divide the {N} positions of decoder.max_length, found {self.block_size}; "
                f"possible: {divisors}"
            )
        duel.check(self.unmasking, 1, refused=("block_confidence",), why="it has blocks of its own")
        if not 0 <= self.clip_low < self.clip_high <= 1:
            raise ValueError(f"need 0 <= clip_low < clip_high <= 1, found {self.clip_low} and {self.clip_high}")


def mean_masked(n: int, low: float, high: float) -> float:
    """Return the mean number of masked tokens in a block of n, for shares between `low` and `high`."""
    inside = [max(0.0, min(high, k / n) - max(low, (k - 1) / n)) for k in range(1, n + 1)]
    return sum(k * part for k, part in enumerate(inside, 1)) / (high - low)


# An interval of the published kind. On pydocs it trains bd3lm-tiny to a bound of 6.24 and 6.25 nats per token (two
# seeds), against 6.39 and 6.27 without clipping, and 6.30 (one seed) on [0.5, 1], where block losses vary least.
_CLIPPED: dict[str, Any] = {"clip_low": 0.3, "clip_high": 0.8}


def _shape(layers: int, *, width: int = 512, heads: int = 8, hidden: int = 1376, max_length: int = 1024) -> BD3LMConfig:
    decoder = TransformerConfig(
        layers=layers, width=width, heads=heads, hidden=hidden, max_length=max_length, window=None
    )
    return BD3LMConfig(decoder=decoder, **_CLIPPED)


class BD3LM(Published, MaskedModel):
    """Masked diffusion in each block, given the clean blocks before it."""

    family = "bd3lm"
    config_class = BD3LMConfig
    presets: ClassVar = {
        "bd3lm-tiny": Preset(
            config=_shape(4, width=128, heads=4, hidden=352, max_length=128),
            tokenizer="bpe-2048",
            training=TINY_RECIPE,
            trains_itself=True,
        ),
        "bd3lm-mini": Preset(
            config=_shape(4, width=224, heads=7, hidden=608, max_length=256), tokenizer="bpe-4096", training=MINI_RECIPE
        ),
        "bd3lm-small": Preset(config=_shape(4), tokenizer="gpt2", training=published_recipe("7B")),
        "bd3lm-medium": Preset(config=_shape(8), tokenizer="gpt2", training=published_recipe("5.2B")),
        "bd3lm-large": Preset(config=_shape(16), tokenizer="gpt2", training=published_recipe("0.9B")),
    }

    def __init__(self, config: BD3LMConfig):
        super().__init__()
        self.config = config
        self.decoder = decoder_of(config.decoder, config.vocab_size, extra_inputs=1, causal=False)

    @classmethod
    def of_published(cls, described: Described) -> BD3LMConfig:
        """See `Published.of_published`."""
        described.refuse_others(cls.family, told=False)
        if described.block_size is None:
            raise UserError("config.json has no block_size, which the weights do not show")
        return BD3LMConfig(vocab_size=described.rows, decoder=described.decoder, block_size=described.block_size)

    @classmethod
    def miniature(cls, vocab_size: int, block_length: int) -> BD3LMConfig:
        """Two layers of width 8, several blocks; if no size fits, one position more and blocks of 2."""
        N = block_length + 1
        S = next((size for size in range(2, N) if N % size == 0), None)
        N, S = (N + 1, 2) if S is None else (N, S)
        decoder = TransformerConfig.smallest(N - 1, window=None)
        return BD3LMConfig(vocab_size=vocab_size, decoder=decoder, block_size=S)

    @classmethod
    def twin_config(cls, config: Any, *, vocab_size: int, block_length: int, width: int = 64, layers: int = 2) -> Any:
        """See `LanguageModel.twin_config`; blocks of the same size if they fit, and several if `config` has several."""
        N, S = block_length + 1, config.block_size
        if config.decoder.max_length == S:
            S = N
        elif S > 1:
            S = min(S, max(2, N // 2))
            N = (N + S // 2) // S * S
        return dataclasses.replace(
            config,
            vocab_size=vocab_size,
            decoder=config.decoder.resized(layers=layers, width=width, max_length=N),
            block_size=S,
        )

    def headline(self, context: int | Tensor = 0) -> str:
        """Return `elbo` or the rule's likelihood, whatever is scored; `exact` for blocks of one token."""
        return "exact" if self.config.block_size == 1 else super().headline(context)

    @property
    def chain_rule(self) -> bool:
        """See `MaskedModel.chain_rule`; blocks of one token have one order."""
        return self.config.block_size == 1 or super().chain_rule

    def lay_out(self, tokens_BL: Tensor) -> Tensor:
        """Lay out BOS, the text, and masks up to the end of the last block: (B, N), whole blocks."""
        inputs_BL = self.decoder.after_bos(tokens_BL)
        return F.pad(inputs_BL, (0, -inputs_BL.shape[1] % self.config.block_size), value=self.mask_id)

    def clean_pass(self, inputs_BN: Tensor) -> list[KeysValues] | None:
        """Return each layer's keys and values of BOS and text in all blocks but the last; None for a single block."""
        S = self.config.block_size
        kept = inputs_BN.shape[1] - S
        if not kept:
            return None
        block_K = torch.arange(kept, device=inputs_BN.device) // S
        return self.decoder.run(self.decoder.embed(inputs_BN[:, :kept]), visible=block_K[:, None] >= block_K)[1]

    def masked_pass(
        self, inputs_BN: Tensor, masked_BL: Tensor, clean: list[KeysValues] | None, start: int = 0
    ) -> Tensor:
        """Return hidden states (M, D) of the masked tokens, row-major.

        Args:
            inputs_BN: clean inputs, from `lay_out`.
            masked_BL: which tokens to mask and predict.
            clean: the result of `clean_pass`.
            start: first position of a block before which nothing is masked; earlier positions are not computed.
        """
        S, N = self.config.block_size, inputs_BN.shape[1]
        masked_BN = F.pad(masked_BL, (1, N - 1 - masked_BL.shape[1]))
        canvas_BL = inputs_BN.masked_fill(masked_BN, self.mask_id)[:, start:]
        position_L = torch.arange(start, N, device=inputs_BN.device)
        block_L, clean_block_K = position_L // S, torch.arange(N - S, device=inputs_BN.device) // S
        visible = torch.cat([block_L[:, None] > clean_block_K, block_L[:, None] == block_L], 1)
        embedded = self.decoder.embed(canvas_BL)
        h_BLD, _ = self.decoder.run(embedded, positions_L=position_L, past=clean, visible=visible)
        return h_BLD[masked_BN[:, start:]]

    def training_loss(self, tokens_BL: Tensor, *, rng: Rng, progress: float = 1.0) -> Loss:
        """Return minus the bound's estimate from one draw, in mean nats per token; masks have the clipped shares."""
        c, rng = self.config, SequenceRng.of(rng, len(tokens_BL))
        (masks,) = draw_masks(
            torch.ones_like(tokens_BL, dtype=torch.bool),
            rng,
            draws=1,
            block_length=self.block_length,
            block=c.block_size,
            low=c.clip_low,
            high=c.clip_high,
        )
        inputs_BN = self.lay_out(tokens_BL)
        h_MD = self.masked_pass(inputs_BN, masks.masked_BL, self.clean_pass(inputs_BN))
        weights_M = masks.weight_BL[masks.masked_BL] / tokens_BL.numel()
        return Loss(value=weighted_nll(h_MD, self.decoder.head(), tokens_BL[masks.masked_BL], weights_M))

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
        """Return the continuous-time bound, with given tokens never masked; exact for blocks of one token.

        Positions of a block beyond the end of the text stay masked, as in generation; see `lay_out`.
        """
        S = self.config.block_size
        tokens_BL, given_BL, scored_BL = prepare_batch(tokens_BL, context, lengths, self.vocab_size)
        inputs_BN = self.lay_out(tokens_BL.masked_fill(~(given_BL | scored_BL), self.mask_id))
        shortest_context = int(given_BL.sum(1).min()) if len(tokens_BL) else 0
        start = min((shortest_context + 1) // S * S, inputs_BN.shape[1] - S)
        if S > 1 and self.config.unmasking != "any_order":
            clean = self.clean_pass(inputs_BN)

            def predict(masked_BL: Tensor) -> Tensor:
                return logits_of(self.masked_pass(inputs_BN, masked_BL, clean, start), self.decoder.head())

            nats_B = duel.log_likelihood_by_blocks(predict, tokens_BL, scored_BL, self.config.unmasking, S)
            return {self.headline(): LikelihoodEstimate(nats_B=nats_B, tokens_B=scored_BL.sum(1), kind="exact")}
        drawn = draw_masks(
            scored_BL,
            SequenceRng.of(rng, len(tokens_BL)),
            draws=1 if S == 1 else DRAWS if draws is None else draws,
            block_length=self.block_length,
            block=S,
        )
        clean = self.clean_pass(inputs_BN)
        nats_per_draw: list[Tensor] = []
        for masks in drawn:
            h_MD = self.masked_pass(inputs_BN, masks.masked_BL, clean, start)
            nats_BL = torch.zeros_like(masks.weight_BL)
            nats_BL[masks.masked_BL] = token_nats(h_MD, self.decoder.head(), tokens_BL[masks.masked_BL]).double()
            nats_per_draw.append((masks.weight_BL * nats_BL).sum(1))
        nats_KB, tokens_B = torch.stack(nats_per_draw), scored_BL.sum(1)
        if S == 1:
            return {"exact": LikelihoodEstimate(nats_B=nats_KB[0], tokens_B=tokens_B, kind="exact")}
        return diffusion_bound(nats_KB, tokens_B)

    def published_protocol(self) -> PublishedProtocol:
        """See `ScoresAsPublished`."""
        return PublishedProtocol(
            source="kuleshov-group/bd3lms at 1c3e8f4",
            eos_after_rows=False,
            wrapped=True,
            given=1,
            mean_of_exp=False,
            told="a time for each block of a text on [1e-3, 1], weight 1 / t, the first position given",
        )

    @torch.no_grad()
    def published_nats(self, ids_BN: Tensor, rng: SequenceRng) -> Tensor:
        """See `ScoresAsPublished`."""
        S = self.config.block_size
        t_BN = times(rng, ids_BN.shape[1] // S).to(ids_BN.device).repeat_interleave(S, 1)
        masked_BN = disturbed(rng, t_BN)
        return self.published_costs(ids_BN, masked_BN[:, 1:], t_BN[:, 1:]).sum(1)

    def published_costs(self, ids_BN: Tensor, masked_BL: Tensor, t_BL: Tensor) -> Tensor:
        """Return -log p / t of masked positions after the first, float64 (B, N - 1)."""
        inputs_BN, tokens_BL = self.lay_out(ids_BN[:, 1:]), ids_BN[:, 1:]
        h_MD = self.masked_pass(inputs_BN, masked_BL, self.clean_pass(inputs_BN))
        return spread(-token_nats(h_MD, self.decoder.head(), tokens_BL[masked_BL]), masked_BL) / t_BL

    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, sampling: Sampling, rng: Rng
    ) -> Generations:
        """Generate block by block with a KV cache, one token per evaluation; beyond N positions it drops the oldest."""
        return continue_in_blocks(
            self.decoder,
            self.config.block_size,
            prompts,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            rng=rng,
            unmasking=self.config.unmasking,
        )

    def cost(self, length: int) -> Cost:
        """Count the published pass by the papers' convention, and what this code executes; generation fills blocks.

        The published pass takes two positions per token through a sequence of 2N: 2 (6P + 12Ld 2N). Here the head runs
        for masked tokens only.
        """
        c, S = self.config.decoder, self.config.block_size
        P, N = sum(p.numel() for p in self.parameters()), -(-(length + 1) // S) * S
        kept = N - S
        head = StackFlops.of(c, self.vocab_size - 1, N).head
        sizes = [min(S, length + 1 - start) - (start == 0) for start in range(0, N, S)]

        def stack(positions: int, keys: int) -> float:
            return positions / length * StackFlops.of(c, 0, keys).forward

        def predictions(low: float, high: float) -> float:
            return head / length * sum(mean_masked(n, low, high) for n in sizes)

        clean, noisy = stack(kept, kept), stack(N, kept + N)
        # Only keys and values of the clean pass's last layer are used: the rest of it has no backward pass.
        unused = kept / length * (2 * c.width**2 + 4 * c.width * kept + 6 * c.width * c.hidden)
        return Cost(
            parameters=P,
            paper_train_flops_per_token=2 * paper_train_flops(P, c.layers, c.width, 2 * N),
            train_flops_per_token=3 * (clean + noisy + predictions(self.config.clip_low, self.config.clip_high))
            - 2 * unused,
            score_flops_per_token=clean + (1 if S == 1 else self.passes(S)) * (noisy + predictions(0, 1)),
            generate_flops_per_token=stack(length * S + kept, (N + S) // 2) + head,
        )
