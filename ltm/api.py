"""The contract of every model: likelihoods that state their kind, losses, generations and cost.

`ltm.testing` has a test for each of its promises.

Shapes: B sequences, L stream tokens, V vocabulary. Natural logarithms; totals in float64.
"""

from __future__ import annotations

import dataclasses
import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ltm.errors import UserError
from ltm.rng import SequenceRng

if TYPE_CHECKING:
    from ltm.tokenizer import Tokenizer


Kind = Literal["exact", "lower_bound", "upper_bound", "estimate"]
"""exact: log p(x) up to float error. lower_bound: an unbiased Monte Carlo average of a proven lower bound
on log p(x), or a log-average whose exponential is unbiased for p(x), with noise independent of any fitting.
upper_bound: an unbiased average of a proven upper bound on log p(x); shown with `≥` beside a headline, never as one.
estimate: anything else; shown with `~` and never ranked."""

Rng = SequenceRng | torch.Generator


@dataclass(frozen=True, slots=True, kw_only=True)
class LikelihoodEstimate:
    """The log-likelihood of each sequence of a batch, or a bound on it or estimate of it.

    Attributes:
        nats_B: float64, summed over the scored tokens of each sequence.
        tokens_B: int64, how many tokens that covers; BOS and padding are never scored.
        kind: what the number is; see `Kind`.
        draws: Monte Carlo draws per sequence; 0 when exact.
        mc_var_B: float64, variance of `nats_B` over the draws, already divided by draws; None when exact or
            when it cannot be estimated (one draw).
        terms: named float64 parts (B,) that add up to `nats_B`, such as reconstruction and -kl.
        averaged: True for a mean over draws that bounds log p(x) on average only: the exponential of a lower bound may
            exceed p(x) in expectation; False where E exp(nats) <= p(x), as for exact values and logs of mean weights.
        q: the Gaussian q(z|x) of a bound, with `mean` and `log_variance` (B, Y, G, D), or several with the draws from
            each (`ltm.latent.mixture.Mixture`): the audit recomputes the bound from it; None: what `infer` returns.
        prior: the Gaussian prior of z, with `mean` and `log_variance` that broadcast to those of q and are the same for
            all texts; None for N(0, I).
        fast_steps_B: int64, the gradient steps in which q was fitted to each text; None unless texts may differ in it.
        reliability: float64 (B,) each; an upper bound is an estimate where they say so (`ltm.latent.reliability`).
    """

    nats_B: Tensor
    tokens_B: Tensor
    kind: Kind
    draws: int = 0
    mc_var_B: Tensor | None = None
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    averaged: bool = False
    q: Any = None
    prior: Any = None
    fast_steps_B: Tensor | None = None
    reliability: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """A differentiable scalar (nats per token, before any regulariser) and plain numbers for the log."""

    value: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generations:
    """New tokens for each prompt (prompt excluded, stop token included) and network evaluations used for each."""

    tokens: list[list[int]]
    network_evaluations: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Settings for drawing tokens. `temperature` 0 is greedy. `top_p` keeps the smallest set that reaches the mass.

    `stop_ids` end a sequence. `reinfer_every` refits the posterior of a latent model after every that many new tokens
    (the paper's alternative scheme); models without a posterior refuse it.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    stop_ids: tuple[int, ...] = ()
    reinfer_every: int | None = None

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, found {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, found {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be in (0, 1], found {self.top_p}")
        if self.reinfer_every is not None and self.reinfer_every < 1:
            raise ValueError(f"reinfer_every must be at least 1, found {self.reinfer_every}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """The size and compute cost of a model. FLOPs are per stream token; a multiply-add is two.

    Attributes:
        parameters: all of them, a tied embedding counted once.
        paper_train_flops_per_token: the papers' convention: (T+1)(6P + 6LdN) for an LTM, 6P + 12LdN for an AR.
        train_flops_per_token, score_flops_per_token, generate_flops_per_token: what this code executes at most.
    """

    parameters: int
    paper_train_flops_per_token: float
    train_flops_per_token: float
    score_flops_per_token: float
    generate_flops_per_token: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A model family at one size: what `ltm-train NAME` trains by default.

    Attributes:
        config: the model's config dataclass; its `vocab_size` is set from the tokenizer when the model is built.
        tokenizer: `gpt2`, `bpe-N` (trained on the training corpus) or `bytes`.
        training: overrides of `ltm.training.config.TrainConfig`, by field.
        trains_itself: `ltm-eval` trains it on first use; for larger presets it only prints the command.
    """

    config: Any
    tokenizer: str
    training: Mapping[str, Any] = field(default_factory=dict)
    trains_itself: bool = False


TINY_RECIPE: Mapping[str, Any] = {"budget": "tokens=400k", "batch": 4, "lr": 2e-3, "warmup": 0.1, "ema": 0.99}
MINI_RECIPE: Mapping[str, Any] = {**TINY_RECIPE, "budget": "tokens=2.5M"}
"""Recipes that all families share: on so few tokens many small updates learn more than a few large ones."""


def published_recipe(tokens: str) -> dict[str, Any]:
    """The public LTM code's recipe: 524,288 positions per update, AdamW 4e-4 with cosine to a tenth (LTM config.py)."""
    return {"budget": f"tokens={tokens}", "batch": 64, "accumulation": 8, "lr": 4e-4, "ema": 0.999}


class LanguageModel(nn.Module, ABC):
    """A language model over token ids 0 .. vocab_size - 2; id vocab_size - 1 is BOS, an input that is never output.

    Every method takes stream tokens without BOS and puts the BOS in front itself: given, never scored.
    A block holds at most `block_length` = max_length - 1 stream tokens.

    A family is made from its config alone, also on the device `meta`, where tensors have shapes and no values. Initial
    weights come from torch's global generator; the noise of every method comes from its `rng`, and from nothing else.

    Attributes:
        family: its name, that of its entry point: at least two letters, digits, `-` and `_`, a letter first.
        config_class: a frozen dataclass of plain values and other such dataclasses.
        presets: by name, each `FAMILY-SIZE`; their configs have a field `vocab_size`. Empty if it only opens models
            made elsewhere.
        learns_by_counting: trained by `count` and `finish` instead of by gradients of `training_loss`.
    """

    family: ClassVar[str]
    config_class: ClassVar[type]
    presets: ClassVar[Mapping[str, Preset]]
    learns_by_counting: ClassVar[bool] = False
    config: Any

    @classmethod
    @abstractmethod
    def miniature(cls, vocab_size: int, block_length: int) -> Any:
        """The smallest config with every part of the family, for contract tests; blocks may be a little longer."""

    @classmethod
    def twin_config(cls, config: Any, *, vocab_size: int, block_length: int, width: int = 64, layers: int = 2) -> Any:
        """A copy of `config` with a small network and unchanged scoring settings, which an audit trains and tests.

        A family whose own fields must follow overrides this. The block may come out a little longer or shorter.

        Raises:
            UserError: the family cannot have such a model.
        """
        if not hasattr(config, "decoder"):
            raise UserError(f"the family {cls.family} does not say how it would be smaller (LanguageModel.twin_config)")
        decoder = config.decoder.resized(layers=layers, width=width, max_length=block_length + 1)
        return dataclasses.replace(config, vocab_size=vocab_size, decoder=decoder)

    @classmethod
    def check_source(cls, source: str, settings: Sequence[str] = ()) -> None:
        """Raise UserError unless `FAMILY:source` names a model made elsewhere that `from_source` can open.

        It must be quick, since it runs before any work; `settings` are `field=value` of the model's config.
        """
        raise UserError(f"{cls.family}:{source}: expected a directory with a checkpoint of ltm-train or ltm-convert")

    @classmethod
    def from_source(
        cls, source: str, *, settings: Sequence[str] = (), device: str = "cpu", dtype: str = "float32"
    ) -> LoadedModel:
        """The model of `FAMILY:source`, in `dtype` if it likes; UserError as `check_source`, or at damaged files."""
        cls.check_source(source, settings)
        raise NotImplementedError(f"{cls.__name__}.from_source")

    def unprefixed(self, directory: Path) -> Any:
        """What reads texts without BOS, as other tools do (`ltm.evaluation.unprefixed`); UserError if nothing can."""
        raise UserError(
            f"prefix=none is for models made elsewhere, such as pretrained:gpt2; the family {self.family} learnt to "
            "begin every text with BOS: leave it out"
        )

    def count(self, tokens_BL: Tensor) -> None:
        """Count one batch of full blocks, if `learns_by_counting`."""
        raise NotImplementedError(f"{type(self).__name__} is trained by its loss")

    def finish(self) -> None:
        """Build the model from everything counted, if `learns_by_counting`; it replaces the previous one."""
        raise NotImplementedError(f"{type(self).__name__} is trained by its loss")

    def allocate(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Allocate the tensors of a checkpoint whose shapes depend on more than the config."""

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding, BOS included."""
        return self.config.vocab_size

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(itertools.chain(self.parameters(), self.buffers())).device

    @property
    def chain_rule(self) -> bool:
        """True if exact values of a text's parts, each given what is before it, add up to that of the text."""
        return True

    @property
    def inference_matmul(self) -> str | None:
        """Dtype of matrix products in the inference that scoring does for each text, if any; machines may choose it."""
        return None

    @property
    def block_length(self) -> int:
        """The most stream tokens that fit next to the BOS; a family without a `decoder` overrides this."""
        return self.config.decoder.max_length - 1

    def rate_of(self, parameter: str) -> float:
        """Return what the learning rate of a parameter, by its name, is multiplied by in training."""
        return 1.0

    @abstractmethod
    def training_loss(self, tokens_BL: Tensor, *, rng: Rng, progress: float = 1.0) -> Loss:
        """The loss on one batch of full blocks. `progress` in [0, 1] is the share of training done, for warm-ups."""

    @abstractmethod
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
        """Every likelihood that the model offers for tokens[context:length] given tokens[:context], headline first.

        What a row gets depends on its own text, context and noise, never on the rest of the batch.

        Args:
            tokens_BL: int64 stream tokens; what lies at or beyond `lengths` is padding and changes nothing.
            context: how many leading tokens are given and not scored; one number or one per row.
            lengths: int64 (B,), real tokens of each row; all L when None.
            draws: Monte Carlo draws of the headline; the model's own default when None.
            rng: noise for fitting and drawing, one stream per sequence.
            only: the name of the one likelihood to compute; all when None.

        Raises:
            ValueError: an id outside 0 .. vocab_size - 2, which the message names, BOS among them; or not
                0 <= context <= length <= L. `ltm.nn.spans.prepare_batch` checks both.
        """

    def log_likelihood(self, tokens_BL: Tensor, *, rng: Rng, **options: Any) -> LikelihoodEstimate:
        """The headline likelihood; the options are those of `log_likelihoods`."""
        which = self.headline(options.get("context", 0))
        return self.log_likelihoods(tokens_BL, rng=rng, only=which, **options)[which]

    @abstractmethod
    def headline(self, context: int | Tensor = 0) -> str:
        """The likelihood to rank by, no `upper_bound`; whole texts and continuations may have different ones."""

    @abstractmethod
    def generate(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, sampling: Sampling, rng: Rng
    ) -> Generations:
        """Continue each prompt (without BOS; empty for unconditional text). Repeats under the same rng.

        Raises:
            ValueError: a prompt longer than `block_length`, whose length the message says, since nothing is cut
                silently; a prompt and new tokens that exceed it, if the family cannot go on beyond its block; an id
                outside 0 .. vocab_size - 2, which the message names; `max_new_tokens` below 1; or `reinfer_every`,
                if the model has no posterior.
        """

    def features(self, tokens_BL: Tensor, lengths: Tensor) -> Tensor:
        """One feature vector of the network per text, (B, D), for comparing sets of texts (MAUVE).

        Args:
            tokens_BL: int64 stream tokens, at most a block; what lies at or beyond `lengths` changes nothing.
            lengths: int64 (B,), at least 1.

        Raises:
            UserError: the family has no features.
        """
        raise UserError(f"the family {self.family} has no features of texts; autoregressive and pretrained models do")

    @classmethod
    def has_features(cls) -> bool:
        """True if the family has `features` of texts; asked of the class, before a model is opened."""
        return cls.features is not LanguageModel.features

    @abstractmethod
    def cost(self, length: int) -> Cost:
        """Parameters and FLOPs per token at blocks of `length` stream tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to score, with what it was trained on.

    `info` holds name, family, config, config_digest, weights_digest, tokenizer {name, fingerprint} and training.
    """

    model: LanguageModel
    tokenizer: Tokenizer
    name: str
    directory: Path
    info: dict[str, Any]
