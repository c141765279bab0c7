"""Models whose likelihoods are sound and not made as those of this suite: none may be refuted.

Shapes: B sequences, L tokens, V vocabulary with BOS, S states, K draws.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from baselines.ar import ARConfig, Autoregressive
from baselines.diffusion.masking import DRAWS, diffusion_bound, visible_keys
from baselines.diffusion.mdlm import MDLM
from ltm.api import Cost, Generations, LanguageModel, Loss
from ltm.nn.left_to_right import ExactModel
from ltm.nn.output_head import token_nats
from ltm.nn.sampling import draw
from ltm.nn.spans import prepare_batch
from ltm.rng import SequenceRng
from tests.support.sound_latents import (
    BestOfRefits,
    ControlVariate,
    DefensiveMixture,
    MirroredMixture,
    MoreSteps,
    OtherPrior,
    VisitedMixture,
)


class _Scored(ExactModel):
    """An exact model that generates by scoring every next token."""

    @torch.no_grad()
    def generate(self, prompts, *, max_new_tokens, sampling, rng):
        """Token by token; prompts of one length."""
        tokens_BL = torch.tensor([list(prompt) for prompt in prompts], dtype=torch.int64).view(len(prompts), -1)
        noise, outputs = SequenceRng.of(rng, len(prompts)).stream("tokens"), self.vocab_size - 1
        for _ in range(max_new_tokens):
            every = torch.arange(outputs).repeat(len(tokens_BL))[:, None]
            longer_BL = torch.cat([tokens_BL.repeat_interleave(outputs, 0), every], 1)
            logits_BV = self.token_nats(longer_BL)[:, -1].view(-1, outputs)
            tokens_BL = torch.cat([tokens_BL, draw(logits_BV, noise.uniform(), sampling)[:, None]], 1)
        new = tokens_BL[:, -max_new_tokens:].tolist()
        return Generations(tokens=new, network_evaluations=[max_new_tokens] * len(new))

    def cost(self, length):
        """Not counted."""
        return Cost(
            parameters=sum(p.numel() for p in self.parameters()),
            paper_train_flops_per_token=1.0,
            train_flops_per_token=1.0,
            score_flops_per_token=1.0,
            generate_flops_per_token=1.0,
        )


class MixtureOfTwo(_Scored):
    """Half the probability of one autoregressive model and half of another, trained on other texts."""

    family = "mixture"
    config_class = ARConfig
    presets: ClassVar = {}

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.parts = nn.ModuleList([Autoregressive(config), Autoregressive(config)])

    miniature = Autoregressive.miniature

    def training_loss(self, tokens_BL, *, rng, progress=1.0):
        """Each part learns half of the batch."""
        halves = zip(self.parts, tokens_BL.chunk(2), strict=True)
        return Loss(value=sum(part.training_loss(half, rng=rng).value for part, half in halves) / 2)

    def token_nats(self, tokens_BL):
        """Differences of the mixture's log-probability of longer and longer beginnings."""
        sums = [part.token_nats(tokens_BL).double().cumsum(1) for part in self.parts]
        mixed_BL = torch.logaddexp(*sums) - math.log(2)
        return mixed_BL.diff(dim=1, prepend=mixed_BL.new_zeros(len(mixed_BL), 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class HMMConfig:
    """A hidden Markov model of `states` states."""

    vocab_size: int = 0
    length: int = 16
    states: int = 3


class HMM(_Scored):
    """A hidden Markov model, scored by the forward algorithm."""

    family = "hmm"
    config_class = HMMConfig
    presets: ClassVar = {}

    def __init__(self, config):
        super().__init__()
        self.config, S = config, config.states
        self.start = nn.Parameter(torch.randn(S))
        self.step = nn.Parameter(torch.randn(S, S))
        self.emit = nn.Parameter(torch.randn(S, config.vocab_size - 1))

    @classmethod
    def miniature(cls, vocab_size, block_length):
        """Three states."""
        return HMMConfig(vocab_size=vocab_size, length=block_length)

    @classmethod
    def twin_config(cls, config, *, vocab_size, block_length, width=64, layers=2):
        """See `LanguageModel.twin_config`; it is small already."""
        return dataclasses.replace(config, vocab_size=vocab_size, length=block_length)

    @property
    def block_length(self):
        """As configured."""
        return self.config.length

    def training_loss(self, tokens_BL, *, rng, progress=1.0):
        """Exact, and differentiable."""
        return Loss(value=-self.token_nats(tokens_BL).mean())

    def token_nats(self, tokens_BL):
        """Normalisers of the forward algorithm: log p of each token given those before it."""
        step_SS, emit_SV = self.step.double().log_softmax(1), self.emit.double().log_softmax(1)
        state_BS, nats = self.start.double().log_softmax(0).expand(len(tokens_BL), -1), []
        for token_B in tokens_BL.T:
            joint_BS = state_BS + emit_SV.T[token_B]
            nats.append(joint_BS.logsumexp(1))
            state_BS = (joint_BS - nats[-1][:, None])[:, :, None].add(step_SS).logsumexp(1)
        return torch.stack(nats, 1)


class TextbookMDLM(MDLM):
    """Time is uniform, each token masked by itself with that probability, and weighs 1/t."""

    def times(self, u_KB):
        """Times from uniform numbers, in (0, 1]."""
        return 1 - u_KB

    @torch.no_grad()
    def log_likelihoods(self, tokens_BL, *, context=0, lengths=None, draws=None, rng, only=None):
        """As `MDLM.log_likelihoods`."""
        tokens_BL, given_BL, scored_BL = prepare_batch(tokens_BL, context, lengths, self.vocab_size)
        rng, visible = SequenceRng.of(rng, len(tokens_BL)), visible_keys(given_BL | scored_BL)
        stream, nats = rng.stream("masks"), []
        for time_B in self.times(rng.stratified("time", DRAWS if draws is None else draws)[..., 0]):
            uniform_BL = stream.uniform(self.block_length)[:, : tokens_BL.shape[1]]
            masked_BL = scored_BL & (uniform_BL < time_B[:, None])
            h_ND = self.hidden_states(tokens_BL.masked_fill(masked_BL, self.mask_id), masked_BL, visible)
            nats_BL = torch.zeros(tokens_BL.shape, dtype=torch.float64)
            nats_BL[masked_BL] = token_nats(h_ND, self.decoder.head(), tokens_BL[masked_BL]).double()
            nats.append(nats_BL.sum(1) / time_B)
        return diffusion_bound(torch.stack(nats), scored_BL.sum(1))


class DiscreteTimeMDLM(TextbookMDLM):
    """The bound of 32 steps of time: t is i/32, and so is the first."""

    def times(self, u_KB):
        """Times of a grid."""
        return ((32 * u_KB).floor() + 1) / 32


SOUND: dict[str, tuple[type[LanguageModel], str]] = {
    "best of four refits by other noise": (BestOfRefits, "ltm"),
    "more fast steps in scoring": (MoreSteps, "ltm"),
    "another Gaussian prior": (OtherPrior, "vae"),
    "defensive mixture": (DefensiveMixture, "vae"),
    "mixture of what a fit visits": (VisitedMixture, "ltm"),
    "mixture in mirrored draws": (MirroredMixture, "vae"),
    "control variate": (ControlVariate, "vae"),
    "mixture of two models": (MixtureOfTwo, "ar"),
    "hidden Markov model": (HMM, ""),
    "textbook MDLM": (TextbookMDLM, "mdlm"),
    "discrete-time MDLM": (DiscreteTimeMDLM, "mdlm"),
}
"""Each sound model with the family whose tiny preset it takes its settings from, if it takes any."""
