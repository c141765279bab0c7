"""Masked diffusion on any schedule, MD4, and on learned ones, GenMD4 (arXiv 2406.04329).

MDLM's network, conditioned on the time (or not: `time_conditioning=false`). At t = 0 a token is masked at rate 1e-4,
and what is masked there is guessed uniformly: the data end, n 1e-4 log(outputs) nats, is part of the bound. At t = 1
everything is masked, exactly, so no prior term is left out. (The published code has the offset at both ends and takes
the prior term as 0, which is not quite true.) Between the ends the bound depends on the schedule only through the time
that the network is given; see `masking.py`. Draws with a rate below 1e-4 belong to the part that the data end replaces.

Sizes: the embedding is tied and counted once, with a row for the mask; time embedding and modulations are counted, and
the SwiGLU is narrower to make up for them. At depths 4 / 8 / 16 the sizes are within 0.2% of ltm-small / medium /
large; learned schedules add one number per token type. Shapes: B sequences, L tokens, N masked or wanted tokens, D
width, E width of the time embedding, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from baselines.diffusion.learned_schedule import LearnedSchedule, Noised, leave_one_out
from baselines.diffusion.masking import DRAWS, diffusion_bound, draw_masks, visible_keys
from baselines.diffusion.schedules import OFFSET, MaskSchedule, grid
from baselines.diffusion.stepping import Move, take_steps
from baselines.diffusion.time_embedding import TimeEmbedding, conditioning_flops
from baselines.diffusion.unmasking import CanvasModel, check_settings, unmask
from ltm.api import Cost, LikelihoodEstimate, Loss, Preset, Rng, Sampling, published_recipe, tiny_recipe
from ltm.nn.flops import StackFlops, paper_train_flops
from ltm.nn.output_head import logits_of, over_vocabulary, token_nats, weighted_nll
from ltm.nn.sampling import probabilities
from ltm.nn.spans import prepare_batch
from ltm.nn.transformer import Transformer, TransformerConfig
from ltm.rng import SequenceRng, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class MD4Config:
    """A bidirectional Transformer, its schedule, and how it generates, which affects neither training nor scoring.

    Attributes:
        schedule: mask rate over time; `learned` gives every token type a speed of its own (GenMD4).
        power: exponent of the polynomial schedule.
        time_conditioning: give the network the time.
        condition_width: E, width of the time embedding.
        sampler: `ancestral`, one evaluation for each of `sampling_steps` over the `grid` of times; `cached`, the same
            samples without the evaluations that reveal nothing; `first_hitting`, one token per evaluation and exact.
            Learned schedules support `ancestral` only.
        grid: spacing of the sampler's times.
        stride: new tokens of each canvas after the first, if a text exceeds a block; half a block if none.

    Raises:
        ValueError: a power, width or sampler that is not allowed; see also `check_settings`.
    """

    vocab_size: int = 0
    decoder: TransformerConfig
    schedule: Literal["linear", "cosine", "polynomial", "learned"] = "linear"
    power: float = 2.0
    time_conditioning: bool = True
    condition_width: int = 128
    sampler: Literal["ancestral", "cached", "first_hitting"] = "ancestral"
    grid: Literal["uniform", "cosine"] = "uniform"
    sampling_steps: int = 1000
    stride: int | None = None

    def __post_init__(self) -> None:
        check_settings("md4", self.decoder, self.sampling_steps, self.stride)
        if self.power <= 0:
            raise ValueError(f"power must be above 0, found {self.power}")
        if self.condition_width < 2 or self.condition_width % 2:
            raise ValueError(f"condition_width must be even and at least 2, found {self.condition_width}")
        if self.schedule == "learned" and self.sampler != "ancestral":
            raise ValueError(f"a learned schedule is sampled with sampler=ancestral, found {self.sampler}")


def _matched_shape(layers: int) -> MD4Config:
    decoder = TransformerConfig(layers=layers, width=512, heads=8, hidden=1120, max_length=1024, window=None)
    return MD4Config(decoder=decoder)


_TINY = MD4Config(
    decoder=TransformerConfig(layers=4, width=128, heads=4, hidden=288, max_length=128, window=None),
    condition_width=32,
    sampling_steps=256,
)


class MD4(CanvasModel):
    """Masked diffusion with a time-conditioned network and an explicit data end."""

    family = "md4"
    config_class = MD4Config
    presets: ClassVar = {
        "md4-tiny": Preset(config=_TINY, tokenizer="bpe-2048", training=tiny_recipe(), trains_itself=True),
        "md4-learned-tiny": Preset(
            config=dataclasses.replace(_TINY, schedule="learned"),
            tokenizer="bpe-2048",
            training=tiny_recipe(),
            trains_itself=True,
        ),
        "md4-small": Preset(config=_matched_shape(4), tokenizer="gpt2", training=published_recipe("7B")),
        "md4-medium": Preset(config=_matched_shape(8), tokenizer="gpt2", training=published_recipe("5.2B")),
        "md4-large": Preset(config=_matched_shape(16), tokenizer="gpt2", training=published_recipe("0.9B")),
    }

    def __init__(self, config: MD4Config):
        super().__init__()
        self.config = config
        width = config.condition_width if config.time_conditioning else 0
        self.decoder = Transformer(config.decoder, config.vocab_size, extra_inputs=1, causal=False, condition=width)
        self.time_embedding = TimeEmbedding(width) if width else None
        self.fixed = self.learned = None
        if config.schedule == "learned":
            self.learned = LearnedSchedule(config.vocab_size - 1)
        else:
            self.fixed = MaskSchedule(name=config.schedule, power=config.power)

    @classmethod
    def miniature(cls, vocab_size: int, block_length: int) -> MD4Config:
        """Two layers of width 8, a time embedding of width 4; generates by first hitting."""
        decoder = TransformerConfig.smallest(block_length, window=None)
        return MD4Config(vocab_size=vocab_size, decoder=decoder, condition_width=4, sampler="first_hitting")

    def hidden_states(
        self, canvas_BL: Tensor, time_B: Tensor, wanted_BL: Tensor, visible: Tensor | None = None
    ) -> Tensor:
        """Return hidden states (N, D) of the wanted positions, row-major, for texts with mask ids in them."""
        condition_BE = None if self.time_embedding is None else self.time_embedding(time_B)
        inputs = self.decoder.after_bos(canvas_BL)
        return self.decoder(inputs, visible=visible, condition_BE=condition_BE)[:, 1:][wanted_BL]

    def training_loss(self, tokens_BL: Tensor, *, rng: Rng, progress: float = 1.0) -> Loss:
        """Return minus the bound's estimate in mean nats per token: from one draw, or for learned schedules from two.

        The two have equally many masks; see `leave_one_out`.
        """
        everything = torch.ones_like(tokens_BL, dtype=torch.bool)
        rng = SequenceRng.of(rng, len(tokens_BL))
        if self.learned is not None:
            drawn = self.learned.draw(tokens_BL, everything, rng, draws=1, block_length=self.block_length, masks=2)
            costs_2B = torch.stack([self._learned_costs(self.learned, tokens_BL, everything, each) for each in drawn])
            log_q_2B = torch.stack([self.learned.log_density(tokens_BL, everything, each) for each in drawn])
            cost_B = leave_one_out(costs_2B, log_q_2B) + self.learned.data_end(tokens_BL, everything)
            return Loss(value=cost_B.sum() / tokens_BL.numel())
        ((canvas_BL, time_B, weight_BL),) = self._masked(tokens_BL, everything, rng, draws=1)
        masked_BL = weight_BL > 0
        h_ND = self.hidden_states(canvas_BL, time_B, masked_BL)
        weights_N = weight_BL[masked_BL] / tokens_BL.numel()
        diffusion = weighted_nll(h_ND, self.decoder.head(), tokens_BL[masked_BL], weights_N)
        return Loss(value=diffusion + OFFSET * math.log(self.vocab_size - 1))

    def _masked(
        self, tokens_BL: Tensor, scored_BL: Tensor, rng: SequenceRng, *, draws: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (canvas, time, token weights) for each draw; weights are 0 if the draw belongs to the data end."""
        assert self.fixed is not None
        for masks in draw_masks(scored_BL, rng, draws=draws, block_length=self.block_length):
            rate_B = masks.rate_BP[:, 0]
            weight_BL = masks.weight_BL * (rate_B >= OFFSET)[:, None]
            yield tokens_BL.masked_fill(masks.masked_BL, self.mask_id), self.fixed.time(rate_B), weight_BL

    def _learned_costs(
        self,
        schedule: LearnedSchedule,
        tokens_BL: Tensor,
        scored_BL: Tensor,
        noised: Noised,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Estimate the cost of the diffusion term from one draw, float64 (B,) nats, differentiable."""
        canvas_BL = tokens_BL.masked_fill(noised.masked_BL, self.mask_id)
        h_ND = self.hidden_states(canvas_BL, noised.time_B, noised.masked_BL, visible)
        cost_N = over_vocabulary(schedule.cost, h_ND, self.decoder.head(), tokens_BL[noised.masked_BL])
        cost_BL = torch.zeros_like(tokens_BL, dtype=torch.float64).masked_scatter(noised.masked_BL, cost_N.double())
        return schedule.weights(tokens_BL, scored_BL, noised) * cost_BL.sum(1)

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
        """Return the bound with its terms `diffusion` and `data_end`; given tokens are never masked."""
        tokens_BL, given_BL, scored_BL = prepare_batch(tokens_BL, context, lengths, self.vocab_size)
        rng, draws = SequenceRng.of(rng, len(tokens_BL)), DRAWS if draws is None else draws
        visible = visible_keys(given_BL | scored_BL)
        if self.learned is not None:
            drawn = self.learned.draw(tokens_BL, scored_BL, rng, draws=draws, block_length=self.block_length)
            nats_per_draw = [-self._learned_costs(self.learned, tokens_BL, scored_BL, each, visible) for each in drawn]
            data_end_B = -self.learned.data_end(tokens_BL, scored_BL)
        else:
            nats_per_draw = []
            for canvas_BL, time_B, weight_BL in self._masked(tokens_BL, scored_BL, rng, draws=draws):
                masked_BL = weight_BL > 0
                h_ND = self.hidden_states(canvas_BL, time_B, masked_BL, visible)
                nats_BL = torch.zeros_like(weight_BL)
                nats_BL[masked_BL] = token_nats(h_ND, self.decoder.head(), tokens_BL[masked_BL]).double()
                nats_per_draw.append((weight_BL * nats_BL).sum(1))
            data_end_B = -scored_BL.sum(1).double() * OFFSET * math.log(self.vocab_size - 1)
        return diffusion_bound(torch.stack(nats_per_draw), scored_BL.sum(1), {"data_end": data_end_B})

    def predict(self, canvas_BL: Tensor, rate_B: Tensor, wanted_BL: Tensor) -> Tensor:
        """Return logits (N, V - 1) of the wanted positions, at the time with this mask rate; fixed schedules only."""
        assert self.fixed is not None
        return logits_of(self.hidden_states(canvas_BL, self.fixed.time(rate_B), wanted_BL), self.decoder.head())

    def _rates(self) -> list[float]:
        """Return the mask rates of the sampler's grid, 1 .. 0; for a learned schedule the times, the rates at speed 1.

        The last is 0 and not OFFSET, so the last step reveals whatever is left.
        """
        times = grid(self.config.grid, self.config.sampling_steps)
        return times.tolist() if self.fixed is None else [*self.fixed.rate(times[:-1]).tolist(), 0.0]

    def fill(self, canvas_BL: Tensor, noise: Stream, sampling: Sampling) -> tuple[Tensor, Tensor]:
        """Reveal the masks with the configured sampler; see `CanvasModel.fill`."""
        rates, block_length = self._rates(), self.block_length
        if self.learned is not None:
            schedule = self.learned

            def reveal(time: float, next_time: float) -> Move:
                return lambda logits, now: schedule.reveal(probabilities(logits, sampling), time, next_time)

            return take_steps(
                self.hidden_states,
                self.decoder.head(),
                [(time, reveal(time, later)) for time, later in itertools.pairwise(rates)],
                canvas_BL,
                canvas_BL == self.mask_id,
                noise,
                block_length=block_length,
                mask_id=self.mask_id,
            )
        return unmask(
            self.predict,
            canvas_BL,
            self.mask_id,
            rates,
            noise,
            sampler=self.config.sampler,
            block_length=block_length,
            sampling=sampling,
        )

    def cost(self, length: int) -> Cost:
        """Count the papers' 6P + 12LdN, and the FLOPs that this code executes; generation fills one canvas.

        The head runs for masked tokens only, about half of all on average. Learned schedules train on two draws, form
        logits twice for a gradient, and predict every masked token at every step; they are counted at speed 1.
        """
        P, c = sum(p.numel() for p in self.parameters()), self.config.decoder
        stack = StackFlops.of(c, self.vocab_size - 1, length + 1)
        # BOS is computed but is not a token.
        blocks = (stack.forward - stack.head) * (length + 1) / length
        blocks += conditioning_flops(c, self.decoder.condition) / length
        rates = self._rates()
        head = stack.head * (length + 1) / (2 * length)
        if self.learned is None:
            train = 3 * (blocks + head)
            evaluations = _evaluations(self.config.sampler, rates, length)
            generate = evaluations * blocks + stack.head
        else:
            train = 2 * (3 * blocks + 4 * head)
            generate = sum((1 - (1 - rate) ** length) * blocks + rate * stack.head for rate in rates)
        return Cost(
            parameters=P,
            paper_train_flops_per_token=paper_train_flops(P, c.layers, c.width, length + 1),
            train_flops_per_token=train,
            score_flops_per_token=DRAWS * (blocks + head),
            generate_flops_per_token=generate,
        )


def _evaluations(sampler: str, rates: Sequence[float], length: int) -> float:
    """Return the expected number of network evaluations to fill a canvas of `length` masks."""
    if sampler == "first_hitting":
        return length
    if sampler == "ancestral":
        return len(rates) - 1
    return sum(1 - (1 - (rate - later)) ** length for rate, later in itertools.pairwise(rates))
