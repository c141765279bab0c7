"""A known source as a model that has learned it: what it says of a text is true, so that bounds can be held against it.

p is the source r but for a small share of the uniform distribution u over all outputs, so that no text is impossible:

    p(x) = (1 - elsewhere) r(x) + elsewhere u(x).

It has no weights and learns nothing. Where the source hides something, such as a topic, two bounds are offered besides,
from importance weights as those of latent models are, with the hidden z drawn from prior and posterior in equal parts:
they must lie on their sides of the exact value. Shapes: B texts, L tokens, Z values of what is hidden and
one more for u, K draws, V - 1 outputs, A symbols.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ltm import tokenizer
from ltm.api import Cost, LikelihoodEstimate, LoadedModel, Loss, Rng
from ltm.config import config_digest, to_dict, with_settings
from ltm.errors import UserError
from ltm.files import home
from ltm.known_sources.base import EDITION, SYMBOLS, KnownSource, from_settings
from ltm.known_sources.topics import Topics
from ltm.latent import bounds, tube
from ltm.nn.left_to_right import ExactModel
from ltm.nn.spans import prepare_batch
from ltm.rng import SequenceRng
from ltm.training.checkpoint import check_name, trained_elsewhere
from ltm.training.weights import weights_digest

DRAWS = 8
"""Default draws, of which both bounds take eight times as many, as those of latent models do."""
_ROWS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """A known source and how its symbols are spelt.

    Attributes:
        spec: the source, with its settings: `topics:length=64`.
        elsewhere: the share of probability that is spread evenly over all texts; it costs about as many nats per text.
        spelt: a symbol's id is its byte; else its number in the alphabet.

    Raises:
        ValueError: a share outside (0, 1), or fewer outputs than there are symbols.
        UserError: no such source.
    """

    vocab_size: int = 258
    spec: str = "topics"
    elsewhere: float = 1e-6
    spelt: bool = True

    def __post_init__(self) -> None:
        source = from_settings(self.spec)
        if not 0 < self.elsewhere < 1:
            raise ValueError(f"elsewhere must be between 0 and 1, found {self.elsewhere}")
        least = 256 if self.spelt else len(source.alphabet)
        if self.vocab_size - 1 < least:
            raise ValueError(f"{self.spec} takes {least} outputs and a BOS, found vocab_size {self.vocab_size}")


def _turns(ids_BL: Tensor) -> Tensor:
    """A number in [0, 1) for each text, by which its uniforms are turned, so that under one noise texts err apart."""
    place_L = torch.arange(1, ids_BL.shape[1] + 1, device=ids_BL.device).double().sqrt()
    return (ids_BL * place_L * ((math.sqrt(5) - 1) / 2)).sum(1) % 1


class Source(ExactModel):
    """The source as a model: its exact likelihood and, where it hides something, a bound on either side."""

    family = "known-source"
    config_class = SourceConfig
    learns_by_counting = True
    presets: ClassVar = {}
    anchor: Tensor

    def __init__(self, config: SourceConfig):
        super().__init__()
        self.config = config
        self.register_buffer("anchor", torch.zeros(0), persistent=False)

    @property
    def source(self) -> KnownSource:
        """The source itself."""
        return from_settings(self.config.spec)

    @classmethod
    def miniature(cls, vocab_size: int, block_length: int) -> SourceConfig:
        """Texts of a block with as many words as there are outputs, and three topics."""
        words = min(vocab_size - 1, len(SYMBOLS))
        spec = Topics(length=block_length, words=words, topics=3, classes=2).spec
        return SourceConfig(vocab_size=vocab_size, spec=spec, spelt=words < vocab_size - 1)

    @classmethod
    def twin_config(cls, config: Any, *, vocab_size: int, block_length: int, **shape: Any) -> Any:
        """See `LanguageModel.twin_config`; whatever the source, the small one is of topics."""
        small = cls.miniature(vocab_size, block_length)
        return dataclasses.replace(small, elsewhere=config.elsewhere)

    @property
    def block_length(self) -> int:
        """The length of a text."""
        return self.source.length

    def count(self, tokens_BL: Tensor) -> None:
        """Nothing is learned."""

    def finish(self) -> None:
        """Nothing is learned."""

    def training_loss(self, tokens_BL: Tensor, *, rng: Rng, progress: float = 1.0) -> Loss:
        """Return the mean NLL in nats per token; it has no gradient."""
        return Loss(value=-self.token_nats(tokens_BL).mean())

    @property
    def _ids(self) -> Tensor:
        """The token id of each symbol, (A,)."""
        symbols = self.source.alphabet
        return torch.tensor(list(symbols.encode()) if self.config.spelt else range(len(symbols)))

    def log_beginnings(self, tokens_BL: Tensor) -> Tensor:
        """log p(z, x_1 .. x_t), (Z + 1, B, L), float64: the last z is that of the uniform share."""
        source, (B, L), outputs = self.source, tokens_BL.shape, self.vocab_size - 1
        number_V = torch.full((outputs,), -1)
        number_V[self._ids] = torch.arange(len(source.alphabet))
        symbols_BL = number_V[tokens_BL.cpu()]
        inside_BL = (symbols_BL >= 0).cummin(1).values
        parts = [source.log_beginnings(rows) for rows in symbols_BL.clamp(min=0).split(_ROWS)]
        own_ZBL = torch.cat(parts, 1).masked_fill(~inside_BL, -math.inf) + math.log1p(-self.config.elsewhere)
        uniform_L = math.log(self.config.elsewhere) - math.log(outputs) * torch.arange(1, L + 1).double()
        return torch.cat([own_ZBL, uniform_L.expand(1, B, L)]).to(tokens_BL.device)

    def token_nats(self, tokens_BL: Tensor) -> Tensor:
        """Return log p of every token given those before it, (B, L), float64."""
        if not tokens_BL.numel():
            return torch.zeros(tokens_BL.shape, dtype=torch.float64, device=tokens_BL.device)
        return F.pad(self.log_beginnings(tokens_BL).logsumexp(0), (1, 0)).diff(dim=1)

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
        """Return `exact` and, of whole texts and if something is hidden, `importance_bound` and `tube_upper_bound`."""
        found = super().log_likelihoods(tokens_BL, context=context, lengths=lengths, rng=rng)
        if isinstance(context, int) and context == 0 and tokens_BL.numel() and only != "exact":
            tokens_BL, _, scored_BL = prepare_batch(tokens_BL, context, lengths, self.vocab_size)
            last_B = (scored_BL.sum(1) - 1).clamp(min=0)
            joint_ZBL = self.log_beginnings(tokens_BL)
            joint_ZB = joint_ZBL.gather(2, last_B.expand(len(joint_ZBL), -1)[..., None])[..., 0]
            if len(joint_ZB) > 2:
                noise = SequenceRng.of(rng, len(tokens_BL))
                turns_B = _turns((tokens_BL + 1) * scored_BL)
                found |= self._bounds(
                    joint_ZB, turns_B, scored_BL.sum(1), noise, 8 * (DRAWS if draws is None else draws)
                )
        return {name: estimate for name, estimate in found.items() if only in (None, name)}

    def _bounds(
        self, joint_ZB: Tensor, turns_B: Tensor, tokens_B: Tensor, rng: SequenceRng, draws: int
    ) -> dict[str, LikelihoodEstimate]:
        """Bounds from weights p(x, z) / q(z), where q(z) is p(z) or p(z | x) with equal odds.

        So no weight exceeds 2 p(x), and no z that matters is missed, such as the uniform share on a text that is rare.
        """
        hidden = len(joint_ZB) - 1
        prior_Z = torch.full((hidden + 1,), math.log1p(-self.config.elsewhere) - math.log(hidden)).double()
        prior_Z[-1] = math.log(self.config.elsewhere)
        log_q_ZB = torch.logaddexp(prior_Z.to(joint_ZB.device)[:, None], joint_ZB.log_softmax(0)) - math.log(2)
        steps_BZ = log_q_ZB.exp().cumsum(0).T.contiguous()

        def log_weights(purpose: str) -> Tensor:
            uniforms_BK = (rng.stream(purpose).uniform(draws).to(joint_ZB.device) + turns_B[:, None]) % 1
            z_KB = torch.searchsorted(steps_BZ, uniforms_BK).clamp(max=hidden).T
            return (joint_ZB - log_q_ZB).gather(0, z_KB)

        lower = bounds.log_mean_exp(log_weights("importance_bound"), tokens_B)
        upper = tube.tangent(log_weights("tube_upper_bound"), tube.log_psi(lower), tokens_B)
        return {"importance_bound": lower, "tube_upper_bound": upper}

    def decode(self, inputs_BL: Tensor, start: int, latents: Any, past: Any) -> tuple[Tensor, Any]:
        """Return log p of each output after the text so far, (B, V - 1), and that text."""
        text_BT = inputs_BL[:, 1:] if past is None else torch.cat([past, inputs_BL], 1)
        B, outputs, ids_A = len(text_BT), self.vocab_size - 1, self._ids.to(text_BT.device)
        # What is no symbol is left to the uniform share.
        log_p_BV = torch.full((B, outputs), math.log(self.config.elsewhere), dtype=torch.float64, device=ids_A.device)
        log_p_BV -= (text_BT.shape[1] + 1) * math.log(outputs)
        longer = torch.cat([text_BT.repeat_interleave(len(ids_A), 0), ids_A.repeat(B)[:, None]], 1)
        log_p_BV[:, ids_A] = self.log_beginnings(longer)[:, :, -1].logsumexp(0).view(B, -1)
        return log_p_BV.log_softmax(1), text_BT

    def cost(self, length: int) -> Cost:
        """Count a look-up per hidden value and token as a FLOP, in either convention; generation tries all symbols."""
        steps = float(getattr(self.source, "topics", 1) * getattr(self.source, "classes", 1))
        return Cost(
            parameters=0,
            paper_train_flops_per_token=steps,
            train_flops_per_token=steps,
            score_flops_per_token=steps,
            generate_flops_per_token=steps * len(self.source.alphabet),
        )

    @classmethod
    def check_source(cls, source: str, settings: Sequence[str] = ()) -> None:
        """Raise UserError unless a known source has that name, its settings exist, and it knows how texts begin."""
        described = cls._described(source, settings)
        try:
            from_settings(described.spec).log_beginnings(torch.zeros(1, 1, dtype=torch.int64))
        except NotImplementedError as error:
            raise UserError(f"{cls.family}:{source}: {error}") from error

    @classmethod
    def _described(cls, source: str, settings: Sequence[str]) -> SourceConfig:
        return with_settings(SourceConfig(spec=from_settings(source).spec), settings)

    @classmethod
    def from_source(
        cls, source: str, *, settings: Sequence[str] = (), device: str = "cpu", dtype: str = "float32"
    ) -> LoadedModel:
        """Make the model; it computes in float64, whatever is asked."""
        cls.check_source(source, settings)
        config = cls._described(source, settings)
        model, name, spelling = cls(config).to(device).eval(), f"{cls.family}:{config.spec}", tokenizer.build("bytes")
        check_name(name, where=name)
        known = {"kind": "known_source", "spec": config.spec, "edition": EDITION, "length": model.block_length}
        info = {
            "name": name,
            "family": cls.family,
            "config": to_dict(config),
            "config_digest": config_digest(config),
            "weights_digest": weights_digest(model.state_dict()),
            "tokenizer": {"name": spelling.name, "fingerprint": spelling.fingerprint},
            "training": {**trained_elsewhere(), "data_source": known},
        }
        return LoadedModel(model=model, tokenizer=spelling, name=name, directory=home(), info=info)
