"""The known source `topics`: a hidden topic for each text, a Markov chain of word classes, and words of the class.

A text's topic z is uniform. Given z, classes follow a stationary Markov chain, and each word is drawn given class and
topic. The whole text reveals z and a few words reveal little of it, so a model with a short window loses most of it.

Shapes: N texts, L words, Z topics, C classes, W words of the vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ltm.known_sources.base import GREATEST_LENGTH, SYMBOLS, Entropy, KnownSource, mean_nats
from ltm.known_sources.building_blocks import choose, ladder, normal_table, stationary


@dataclass(frozen=True, slots=True, kw_only=True)
class Topics(KnownSource):
    """Settings of `topics`.

    Attributes:
        length: words per text.
        words, topics, classes: number of each.
        class_scale: scale of the logits of words that a class has in all topics; 0 makes classes alike.
        topic_scale: scale of the logits that are added for a class in a topic; 0 makes topics alike.
        chain_scale: scale of the logits of the next class, which each topic has its own; 0 makes classes independent.
        seed: seed of all these logits, which are normal.
    """

    name: ClassVar[str] = "topics"
    length: int = 128
    words: int = 64
    topics: int = 64
    classes: int = 4
    class_scale: float = 2.3
    topic_scale: float = 1.0
    chain_scale: float = 2.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.length <= GREATEST_LENGTH:
            raise ValueError(f"length must be from 1 to {GREATEST_LENGTH}, found {self.length}")
        if min(self.topics, self.classes) < 1 or self.topics * self.classes > 4096:
            raise ValueError("topics and classes must be at least 1, and their product at most 4096")
        if not 2 <= self.words <= len(SYMBOLS):
            raise ValueError(f"words must be from 2 to {len(SYMBOLS)}, a character each, found {self.words}")
        if not all(0 <= scale <= 5 for scale in (self.class_scale, self.topic_scale, self.chain_scale)):
            raise ValueError("class_scale, topic_scale and chain_scale must be from 0 to 5")

    @property
    def alphabet(self) -> str:
        """One character per word."""
        return SYMBOLS[: self.words]

    @property
    def numbers(self) -> int:
        """One for the topic, and for each position one for the class and one for the word."""
        return 1 + 2 * self.length

    def topic_of(self, uniforms: Tensor) -> Tensor:
        """The hidden topic of each text, int64 (N,), from the uniform numbers that the text is drawn from."""
        return (uniforms[:, 0] * self.topics).long()

    def draw(self, uniforms: Tensor) -> Tensor:
        """Draw the topic, then classes one after another, then all words."""
        _, _, _, ladders = parameters(self)
        topic_N = self.topic_of(uniforms)
        class_N = choose(ladders[0], self.classes, topic_N, uniforms[:, 1])
        rows = [topic_N * self.classes + class_N]
        for step in range(2, self.length + 1):
            class_N = choose(ladders[1], self.classes, rows[-1], uniforms[:, step])
            rows.append(topic_N * self.classes + class_N)
        return choose(ladders[2], self.words, torch.stack(rows, 1), uniforms[:, self.length + 1 :])

    def log_prefixes(self, symbols_NL: Tensor) -> Tensor:
        """log r(x_1 .. x_t | z) for every topic and t, float64 (Z, N, L)."""
        return _forward(self, symbols_NL.expand(self.topics, -1, -1))

    def log_beginnings(self, symbols_NT: Tensor) -> Tensor:
        """Jointly with the topic."""
        return self.log_prefixes(symbols_NT) - math.log(self.topics)

    def log_mass(self, symbols_NL: Tensor) -> Tensor:
        """The log of the mean over topics."""
        return self.log_prefixes(symbols_NL)[:, :, -1].logsumexp(0) - math.log(self.topics)

    def entropy(self) -> Entropy:
        """H(z) + H(x | z) - H(z | x), the last over 2,000 texts; small sources by enumeration."""
        if self.enumerable:
            return KnownSource.entropy(self)
        return _entropy(self)

    def entropy_given_topic(self) -> Entropy:
        """H(x | z), nats per text: what a model that knows the topic could reach; over equally many texts per topic."""
        return _entropy_given_topic(self)

    def windowed_entropy(self, context: int) -> Entropy:
        """The least nats per text of a model that sees `context` symbols before each, 1 or more; over 50,000 texts.

        The chain is stationary, so a window is distributed as the beginning of a text, wherever it is.
        """
        if context < 1:
            raise ValueError(f"context must be at least 1, found {context}")
        if context >= self.length - 1:
            return self.entropy()
        beginning = dataclasses.replace(self, length=context + 1)
        nats = []
        for uniforms in beginning.uniforms(50_000, seed=0, purpose="windowed entropy"):
            log_r_NL = beginning.log_prefixes(beginning.draw(uniforms)).logsumexp(0) - math.log(self.topics)
            seen, last = log_r_NL[:, -2], log_r_NL[:, -1] - log_r_NL[:, -2]
            nats.append(-seen - (self.length - context) * last)
        return mean_nats(torch.cat(nats))


@functools.lru_cache(maxsize=8)
def parameters(source: Topics) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """p(word | topic, class) (Z, C, W), p(next class | topic, class) (Z, C, C), p(first class | topic), and ladders."""
    topics, classes, words = source.topics, source.classes, source.words

    def normal(*shape: int, purpose: str) -> Tensor:
        return normal_table(*shape, seed=source.seed, purpose=f"topics {purpose}")

    shared_CW = source.class_scale * normal(classes, words, purpose="class")
    own_ZCW = source.topic_scale * normal(topics, classes, words, purpose="topic")
    words_ZCW = torch.softmax(shared_CW + own_ZCW, -1)
    chain_ZCC = torch.softmax(source.chain_scale * normal(topics, classes, classes, purpose="chain"), -1)
    first_ZC = stationary(chain_ZCC)
    return words_ZCW, chain_ZCC, first_ZC, tuple(ladder(t.flatten(0, -2)) for t in (first_ZC, chain_ZCC, words_ZCW))


def _forward(source: Topics, symbols_ZNL: Tensor) -> Tensor:
    """log r(x_1 .. x_t | z), (Z, N, L), of the texts given for each topic, by the forward recursion over classes."""
    words_ZCW, chain_ZCC, first_ZC, _ = parameters(source)
    backwards_ZCC = chain_ZCC.transpose(1, 2).contiguous()
    class_ZCN = first_ZC[:, :, None].expand(-1, -1, symbols_ZNL.shape[1])
    log_steps = []
    for step in range(symbols_ZNL.shape[2]):
        if step:
            class_ZCN = backwards_ZCC @ class_ZCN
        word_ZCN = symbols_ZNL[:, None, :, step].expand_as(class_ZCN)
        joint_ZCN = class_ZCN * words_ZCW.gather(2, word_ZCN)
        total_ZN = joint_ZCN.sum(1)
        class_ZCN = joint_ZCN / total_ZN[:, None]
        log_steps.append(total_ZN.log())
    return torch.stack(log_steps, -1).cumsum(-1)


@functools.lru_cache(maxsize=16)
def _entropy(source: Topics) -> Entropy:
    given = _entropy_given_topic(source)
    undecided = []
    for uniforms in source.uniforms(2_000, seed=0, purpose="entropy of topics"):
        log_p_ZN = source.log_prefixes(source.draw(uniforms))[:, :, -1].log_softmax(0)
        undecided.append(-(log_p_ZN.exp() * log_p_ZN).sum(0))
    left = mean_nats(torch.cat(undecided))
    return Entropy(
        nats_per_text=math.log(source.topics) + given.nats_per_text - left.nats_per_text,
        stderr=math.hypot(given.stderr, left.stderr),
    )


@functools.lru_cache(maxsize=16)
def _entropy_given_topic(source: Topics) -> Entropy:
    """Its error comes from within topics only, since all topics have equally many texts."""
    each = max(2, 1024 // source.topics)
    topic_N = torch.arange(source.topics, dtype=torch.float64).repeat_interleave(each)
    nats = []
    count = 64 * len(topic_N)
    for uniforms in source.uniforms(count, seed=0, purpose="entropy given topic", rows=len(topic_N)):
        uniforms[:, 0] = (topic_N + 0.5) / source.topics
        nats.append(-_forward(source, source.draw(uniforms).view(source.topics, each, -1))[:, :, -1])
    nats_ZN = torch.cat(nats, 1)
    variance = nats_ZN.var(1).sum() / nats_ZN.shape[1] / source.topics**2
    return Entropy(nats_per_text=float(nats_ZN.mean()), stderr=math.sqrt(variance))
