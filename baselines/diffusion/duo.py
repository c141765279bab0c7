"""Uniform-state diffusion with a predicted original token, Duo (arXiv 2506.10892): tokens turn into any state.

The forward process is SEDD's on the uniform graph, and so are the bound, its ends, and the estimator: only what the
network's logits mean is another. They are those of the original token, whose law gives the ratios of all states
(`score_entropy.duo_log_scores`); the published loss, an integral over the time of a log-linear schedule, is the same
integral (UDLM, arXiv 2412.10193). Published networks have states that no text has, such as a padding: texts turn into
them on the way, and the bound pays for what the network gives them. Shapes: see `score_model.py`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from baselines.diffusion import score_entropy
from baselines.diffusion.score_model import ScoreConfig, ScoreModel
from baselines.diffusion.stepping import Move
from ltm.api import Sampling
from ltm.nn.output_head import over_vocabulary
from ltm.nn.transformer import TransformerConfig
from ltm.published.described import Described
from ltm.published.opening import Published
from ltm.published_protocol import EPSILON, PublishedProtocol, disturbed, log_linear, times
from ltm.rng import SequenceRng


@dataclass(frozen=True, slots=True, kw_only=True)
class DuoConfig(ScoreConfig):
    """A bidirectional network that is told the noise level, and how it generates; see `ScoreConfig`.

    Attributes:
        graph: always `uniform`.
        unused_states: states after the tokens that no text has; published networks have one.

    Raises:
        ValueError: a negative number of unused states; see also `ScoreConfig`.
    """

    graph: Literal["uniform"] = "uniform"
    unused_states: int = 0

    def __post_init__(self) -> None:
        # Not by super(), which a dataclass with slots replaces.
        ScoreConfig.__post_init__(self)
        if self.unused_states < 0:
            raise ValueError(f"unused_states must be at least 0, found {self.unused_states}")


class Duo(Published, ScoreModel):
    """Uniform-state diffusion; its bound is SEDD's, of ratios that a predicted original token implies."""

    family = "duo"
    config_class: ClassVar[type] = DuoConfig
    presets: ClassVar = {}
    config: DuoConfig

    @classmethod
    def of_published(cls, described: Described) -> DuoConfig:
        """See `Published.of_published`."""
        described.refuse_others(cls.family, told=True)
        return DuoConfig(vocab_size=described.rows, decoder=described.decoder, unused_states=1)

    @classmethod
    def miniature(cls, vocab_size: int, block_length: int) -> DuoConfig:
        """Two layers of width 8, a noise embedding of width 4, and one state that no text has."""
        decoder = TransformerConfig.smallest(block_length, window=None)
        return DuoConfig(vocab_size=vocab_size, decoder=decoder, condition_width=4, sampling_steps=32, unused_states=1)

    def published_protocol(self) -> PublishedProtocol:
        """See `ScoresAsPublished`."""
        return PublishedProtocol(
            source="s-sahoo/duo at 7c9b498",
            eos_after_rows=False,
            wrapped=True,
            given=0,
            mean_of_exp=False,
            told="one time per block on [1e-3, 1], the continuous-time loss, its ends left out",
        )

    @torch.no_grad()
    def published_nats(self, ids_BN: Tensor, rng: SequenceRng) -> Tensor:
        """See `ScoresAsPublished`."""
        t_B1, stream = times(rng).to(ids_BN.device), rng.stream("published states")
        states_BN = (stream.uniform(ids_BN.shape[1]).to(ids_BN.device) * self.outputs).long()
        replaced_BN = disturbed(rng, (1 - EPSILON) * t_B1.expand(ids_BN.shape))
        return self.published_costs(ids_BN, torch.where(replaced_BN, states_BN, ids_BN), t_B1).sum(1)

    def published_costs(self, ids_BN: Tensor, now_BN: Tensor, t_B1: Tensor) -> Tensor:
        """Return the loss of every position per unit of time, float64 (B, N); texts have no BOS."""
        sigma_B1, slope_B1 = log_linear(t_B1)
        h_ND = self.decoder(now_BN, condition_BE=self.condition_of(sigma_B1[:, 0])).flatten(0, 1)
        cost_N = over_vocabulary(
            functools.partial(score_entropy.uniform_cost, scores=self.log_scores),
            h_ND,
            self.decoder.head(),
            *(each.flatten() for each in (ids_BN, now_BN, sigma_B1.expand(ids_BN.shape))),
        )
        return cost_N.double().view(ids_BN.shape) * slope_B1

    @property
    def outputs(self) -> int:
        """V, the number of states."""
        return self.vocab_size - 1 + self.config.unused_states

    def log_scores(self, logits_NV: Tensor, now_N: Tensor, sigma: Tensor) -> Tensor:
        """Return the ratios that the law of the original token implies."""
        return score_entropy.duo_log_scores(logits_NV, now_N, sigma)

    def steps(self, sampling: Sampling) -> list[tuple[float, Move]]:
        """See `ScoreModel.steps`; the last step ends in tokens alone."""
        *moves, (sigma, last) = super().steps(sampling)
        if not self.config.unused_states:
            return [*moves, (sigma, last)]

        def to_tokens(logits_NV: Tensor, now_N: Tensor) -> Tensor:
            return last(logits_NV, now_N)[:, : self.vocab_size - 1]

        return [*moves, (sigma, to_tokens)]
