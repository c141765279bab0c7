"""Sources of text whose log-likelihood is known exactly, so that a model's claims can be checked against it.

A source is a frozen dataclass of settings. It is also a corpus: `topics:length=64` names the one with that setting.
Shapes: N texts, L symbols per text, R rows of a table of K outcomes. Natural logarithms; all in float64.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import string
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ltm import registry
from ltm.config import from_dict
from ltm.errors import UserError, did_you_mean
from ltm.rng import seed_of
from ltm.untrusted.display import bare, shown

SYMBOLS = string.ascii_letters + string.digits + string.punctuation
"""All printable ASCII characters except the space: each is one byte, hence one token of the tokenizer `bytes`."""
GREATEST_LENGTH = 4096
"""The most symbols per text, so that a whole split fits in memory."""
EDITION = "1"
"""The version of all sources here; a new one has other texts or likelihoods under the same settings."""

_ENTROPY_TEXTS = 20_000
_CHUNK = 256


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entropy:
    """The entropy of a source in nats per text. `stderr` is 0 if it is computed, not estimated."""

    nats_per_text: float
    stderr: float = 0.0


class KnownSource(ABC):
    """A distribution over texts of exactly `length` symbols. Subclasses are frozen dataclasses of settings.

    A text is a function of `numbers` uniform numbers (`draw`), so text i of a seed is the same however many are drawn.
    """

    name: ClassVar[str]
    length: int  # at most GREATEST_LENGTH

    @property
    @abstractmethod
    def alphabet(self) -> str:
        """The symbols in order of their indices: printable ASCII characters, one byte each."""

    @property
    @abstractmethod
    def numbers(self) -> int:
        """The number of uniform numbers that determine a text."""

    @abstractmethod
    def draw(self, uniforms: Tensor) -> Tensor:
        """Make texts, int64 (N, L), from uniform numbers in [0, 1), float64 (N, `numbers`)."""

    @abstractmethod
    def log_mass(self, symbols_NL: Tensor) -> Tensor:
        """As `log_likelihood`, for texts that consist of symbols of the alphabet."""

    def log_beginnings(self, symbols_NT: Tensor) -> Tensor:
        """log r(z, x_1 .. x_t) for t = 1 .. T, float64 (Z, N, T), of texts that may end early; symbols as `log_mass`.

        z is what the source draws first and hides, with Z values; Z = 1 if it hides nothing. Sums over z and over the
        next symbol give what they should, so any model of the next symbol follows.

        Raises:
            NotImplementedError: the source does not say.
        """
        raise NotImplementedError(f"{self.name} knows the likelihoods of whole texts only")

    def sample(self, count: int, *, seed: int, purpose: str = "sample") -> Tensor:
        """Draw `count` independent texts, int64 symbols (count, L); text i depends only on (seed, purpose, i).

        The splits of the corpus are the purposes `train`, `validation` and `test` of seed 0.
        """
        return torch.cat([self.draw(uniforms) for uniforms in self.uniforms(count, seed=seed, purpose=purpose)])

    def uniforms(self, count: int, *, seed: int, purpose: str, rows: int = _CHUNK) -> Iterator[Tensor]:
        """Yield the numbers that determine `count` texts, float64 (N, `numbers`), at most `rows` texts at a time."""
        # Raw bits of a counter-based generator: guaranteed never to change, and fast in any number.
        bits = np.random.Philox(key=seed_of("known source", seed, purpose))
        for first in range(0, count, rows):
            size = (min(rows, count - first), self.numbers)
            yield torch.from_numpy((bits.random_raw(math.prod(size)) >> np.uint64(11)) * 2.0**-53).view(size)

    def log_likelihood(self, symbols_NL: Tensor) -> Tensor:
        """The exact log-likelihood of each text, float64 (N,), nats; -inf outside the support.

        An index outside the alphabet, such as the -1 of `symbols`, is outside the support.
        """
        if symbols_NL.ndim != 2 or symbols_NL.shape[1] != self.length:
            raise ValueError(f"a text of {self.spec} has {self.length} symbols, found shape {tuple(symbols_NL.shape)}")
        log_p_N = torch.full((len(symbols_NL),), -math.inf, dtype=torch.float64)
        inside = ((symbols_NL >= 0) & (symbols_NL < len(self.alphabet))).all(1).nonzero().flatten()
        for rows in inside.split(_CHUNK) if len(inside) else ():
            log_p_N[rows] = self.log_mass(symbols_NL[rows])
        return log_p_N

    def entropy(self) -> Entropy:
        """The entropy of a text: by enumeration of all texts if they are few, else the mean over 20,000 draws."""
        return _entropy(self)

    @property
    def enumerable(self) -> bool:
        """True if the texts over the alphabet are few enough to sum over: at most 65,536."""
        return len(self.alphabet) ** self.length <= 1 << 16

    def every_text(self) -> Tensor:
        """All texts over the alphabet, int64 (N, L), those outside the support too; for small settings."""
        return torch.cartesian_prod(*[torch.arange(len(self.alphabet))] * self.length).view(-1, self.length)

    def texts(self, symbols_NL: Tensor) -> list[str]:
        """Convert symbol indices to texts."""
        codes = np.frombuffer(self.alphabet.encode(), np.uint8)[symbols_NL.numpy()]
        return [row.tobytes().decode() for row in codes]

    def symbols(self, texts: Sequence[str]) -> Tensor:
        """Convert texts to symbol indices, int64 (N, L); -1 for a character that is not in the alphabet.

        Raises:
            UserError: a text is longer or shorter than those of this source.
        """
        for text in texts:
            if len(text) != self.length:
                raise UserError(f"{self.spec}: its texts have {self.length} symbols, found one of {len(text)}")
        index = {symbol: i for i, symbol in enumerate(self.alphabet)}
        flat = [index.get(character, -1) for text in texts for character in text]
        return torch.tensor(flat, dtype=torch.int64).view(len(texts), self.length)

    @property
    def spec(self) -> str:
        """The name with the settings that differ from the defaults: what `from_settings` reads."""
        default = type(self)()
        settings = [f.name for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        changed = [f"{n}={getattr(self, n)!r}" for n in settings if getattr(self, n) != getattr(default, n)]
        return f"{self.name}:{','.join(changed)}" if changed else self.name


def from_settings(text: str) -> KnownSource:
    """Make the source of a name such as `topics` or, with settings, `topics:length=64,words=32`.

    Raises:
        UserError: unknown source or setting, or a value that the source refuses.
    """
    name, _, settings = text.partition(":")
    factory: Any = registry.corpus_factory(name) if name in registry.names(registry.CORPORA) else None
    if not is_known_source(factory):
        known = [name for name in registry.names(registry.CORPORA) if is_known_source(registry.corpus_factory(name))]
        raise did_you_mean("source", name, known)
    values = {}
    for setting in filter(None, settings.split(",")):
        field, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"{text}: expected field=value after the colon, as in {name}:length=64, found {setting!r}")
        values[field] = _number(value)
    return from_dict(factory, values, where=name)


def is_known_source(corpus: Any) -> bool:
    """True if an entry point of `ltm.corpora` offers a known source and not a loader of fixed text."""
    return isinstance(corpus, type) and issubclass(corpus, KnownSource)


def recorded(source: Mapping[str, Any]) -> KnownSource | None:
    """The known source behind the `source` of a split or of a checkpoint trained on it; None if there is none.

    Raises:
        UserError: it is of another edition, whose likelihood is not known here; or it is damaged.
    """
    if source.get("kind") != "known_source":
        return None
    spec, edition = source.get("spec"), source.get("edition")
    if not isinstance(spec, str):
        raise UserError(f"trained on a known source whose record is damaged: expected its name, found {shown(spec)}")
    if edition != EDITION:
        raise UserError(
            f"trained on {bare(spec)} of edition {shown(edition)}, and here it has edition {EDITION}: "
            f"train it anew with ltm-train --corpus {bare(spec)} --fresh"
        )
    return from_settings(spec)


def _number(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@functools.lru_cache(maxsize=16)
def _entropy(source: KnownSource) -> Entropy:
    if source.enumerable:
        log_r = source.log_likelihood(source.every_text())
        return Entropy(nats_per_text=-float(torch.where(log_r > -math.inf, log_r.exp() * log_r, 0.0).sum()))
    return mean_nats(-source.log_likelihood(source.sample(_ENTROPY_TEXTS, seed=0, purpose="entropy")))


def mean_nats(nats_N: Tensor) -> Entropy:
    """Estimate an entropy from -log p of texts drawn from the source itself."""
    return Entropy(nats_per_text=float(nats_N.mean()), stderr=float(nats_N.std()) / math.sqrt(len(nats_N)))
