"""Score-entropy discrete diffusion, SEDD (arXiv 2310.16834): learns ratios of probabilities on one of two graphs.

Bounds and samplers are in `score_model.py`. The published geometric noise continues to sigma 20: beyond 6.9 a network
learns nothing, and its errors cost more than the noise end.

Sizes: the embedding is tied and counted once (with a row for the mask, if there is one); time embedding and modulations
are counted, and the SwiGLU is narrower to make up for them. At depths 4 / 8 / 16 the sizes are within 0.2% of ltm-small
/ medium / large.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from baselines.diffusion import score_entropy
from baselines.diffusion.masking import spread
from baselines.diffusion.score_model import ScoreConfig, ScoreModel
from ltm.api import MINI_RECIPE, TINY_RECIPE, Preset, published_recipe
from ltm.errors import UserError
from ltm.nn.output_head import over_vocabulary
from ltm.nn.transformer import TransformerConfig
from ltm.published.described import Described
from ltm.published.opening import Published
from ltm.published_protocol import EPSILON, PublishedProtocol, disturbed, log_linear, times
from ltm.rng import SequenceRng


@dataclass(frozen=True, slots=True, kw_only=True)
class SEDDConfig(ScoreConfig):
    """A bidirectional network that is told the noise level, its graph, and how it generates; see `ScoreConfig`."""


def _matched_shape(layers: int) -> SEDDConfig:
    decoder = TransformerConfig(layers=layers, width=512, heads=8, hidden=1120, max_length=1024, window=None)
    return SEDDConfig(decoder=decoder)


_TINY = SEDDConfig(
    decoder=TransformerConfig(layers=4, width=128, heads=4, hidden=288, max_length=128, window=None),
    condition_width=32,
    sampling_steps=256,
)
_MINI = dataclasses.replace(
    _TINY, decoder=TransformerConfig(layers=4, width=224, heads=7, hidden=544, max_length=256, window=None)
)


class SEDD(Published, ScoreModel):
    """Discrete diffusion trained by score entropy."""

    family = "sedd"
    config_class: ClassVar[type] = SEDDConfig
    presets: ClassVar = {
        "sedd-tiny": Preset(config=_TINY, tokenizer="bpe-2048", training=TINY_RECIPE, trains_itself=True),
        "sedd-uniform-tiny": Preset(
            config=dataclasses.replace(_TINY, graph="uniform", noise="geometric"),
            tokenizer="bpe-2048",
            training=TINY_RECIPE,
            trains_itself=True,
        ),
        "sedd-mini": Preset(config=_MINI, tokenizer="bpe-4096", training=MINI_RECIPE),
        "sedd-small": Preset(config=_matched_shape(4), tokenizer="gpt2", training=published_recipe("7B")),
        "sedd-medium": Preset(config=_matched_shape(8), tokenizer="gpt2", training=published_recipe("5.2B")),
        "sedd-large": Preset(config=_matched_shape(16), tokenizer="gpt2", training=published_recipe("0.9B")),
    }

    @classmethod
    def of_published(cls, described: Described) -> SEDDConfig:
        """See `Published.of_published`."""
        described.refuse_others(cls.family, told=True)
        if described.graph not in (None, "absorb"):
            raise UserError(f"config.json has the graph {described.graph}; only weights of absorb are known here")
        if described.scaled is False:
            raise UserError("config.json says scale_by_sigma false; only logits relative to sigma are known here")
        return SEDDConfig(vocab_size=described.rows, decoder=described.decoder)

    def published_protocol(self) -> PublishedProtocol:
        """See `ScoresAsPublished`."""
        return PublishedProtocol(
            source="louaaron/Score-Entropy-Discrete-Diffusion at 0605786",
            eos_after_rows=True,
            wrapped=False,
            given=0,
            mean_of_exp=False,
            told="one time per block on [1e-3, 1], score entropy times d sigma, both ends of the integral left out",
        )

    @torch.no_grad()
    def published_nats(self, ids_BN: Tensor, rng: SequenceRng) -> Tensor:
        """See `ScoresAsPublished`. Raises NotImplementedError: the graph is not `absorb`."""
        if self.config.graph != "absorb":
            raise NotImplementedError("how SEDD's public code scores is known here for the absorbing graph")
        t_B1 = times(rng).to(ids_BN.device)
        return self.published_costs(ids_BN, disturbed(rng, (1 - EPSILON) * t_B1.expand(ids_BN.shape)), t_B1).sum(1)

    def published_costs(self, ids_BN: Tensor, masked_BN: Tensor, t_B1: Tensor) -> Tensor:
        """Return score entropy times d sigma of masked positions, float64 (B, N); texts have no BOS."""
        sigma_B1, slope_B1 = log_linear(t_B1)
        canvas_BN = ids_BN.masked_fill(masked_BN, self.mask_id)
        h_MD = self.decoder(canvas_BN, condition_BE=self.condition_of(sigma_B1[:, 0]))[masked_BN]
        cost_M = over_vocabulary(score_entropy.absorb_cost, h_MD, self.decoder.head(), ids_BN[masked_BN])
        return spread(cost_M, masked_BN) / torch.expm1(sigma_B1) * slope_B1

    @classmethod
    def miniature(cls, vocab_size: int, block_length: int) -> SEDDConfig:
        """Two layers of width 8 on the absorbing graph, a noise embedding of width 4."""
        decoder = TransformerConfig.smallest(block_length, window=None)
        return SEDDConfig(vocab_size=vocab_size, decoder=decoder, condition_width=4, sampling_steps=32)
