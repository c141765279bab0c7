"""Gen PPL: what a scorer thinks of texts that another model wrote, in the scorer's own tokens.

The text is decoded and tokenised again, whatever tokens it was made of, cut into blocks of the scorer as any text is,
and each block is scored given BOS. A continuation is scored given its prompt. Shapes: N texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ltm.api import Kind

if TYPE_CHECKING:
    from ltm.evaluation.rows import Row
    from ltm.harness import HarnessModel

_WORST_LAST: tuple[Kind, ...] = ("exact", "lower_bound", "estimate")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTexts:
    """What a scorer says of N texts.

    Attributes:
        likelihood: the scorer's headline, such as `exact` or `elbo`; several are joined by ` + `.
        kind: the weakest kind among them.
        nats_N, tokens_N: log-likelihood of each text and the scorer's tokens in it; 0 and 0 for an empty one.
        mc_var_N: Monte Carlo variance of `nats_N`; None when exact or not known.
    """

    likelihood: str
    kind: Kind
    nats_N: np.ndarray
    tokens_N: np.ndarray
    mc_var_N: np.ndarray | None


def score(scorer: HarnessModel, task: str, texts: Sequence[str], prompts: Sequence[str]) -> ScoredTexts:
    """Score each text given its prompt, which may be empty. Answers are kept, as all answers are.

    Args:
        task: whose texts they are; with the scorer's seed and the place of a text it determines the noise.
    """
    rows = [_rows(scorer, n, text, prompt) for n, (text, prompt) in enumerate(zip(texts, prompts, strict=True))]
    found = iter(scorer.runner.score(f"gen_ppl {task}", [row for own in rows for row in own], companions=False))
    parts = [[_headline(next(found)) for _ in own] for own in rows]
    every = [part for own in parts for part in own]
    known = bool(every) and all(part["mc_var"] is not None for part in every)
    return ScoredTexts(
        likelihood=" + ".join(sorted({part["name"] for part in every})) or scorer.loaded.model.headline(),
        kind=max((part["kind"] for part in every), key=_WORST_LAST.index, default="exact"),
        nats_N=np.array([math.fsum(part["nats"] for part in own) for own in parts], np.float64),
        tokens_N=np.array([sum(part["tokens"] for part in own) for own in parts], np.int64),
        mc_var_N=np.array([math.fsum(part["mc_var"] for part in own) for own in parts]) if known else None,
    )


def mean_of_exp(nats_N: np.ndarray, tokens_N: np.ndarray) -> float:
    """Mean of the perplexities of the texts that have tokens, as some papers report it. One odd text can rule it.

    Infinite where a text's perplexity is beyond all floats.
    """
    some = tokens_N > 0
    with np.errstate(over="ignore"):
        return float(np.exp(-nats_N[some] / tokens_N[some]).mean())


def _headline(record: Any) -> dict[str, Any]:
    name = record["headline"]
    return {"name": name, **record["likelihoods"][name]}


def _rows(scorer: HarnessModel, number: int, text: str, prompt: str) -> list[Row]:
    """The text as one row after its prompt, cut on the left where both are too long, or in blocks without prompt."""
    from ltm.evaluation.rows import continuation, digest_of, joined

    whole, given = joined(scorer.loaded.tokenizer.encode, prompt, text)
    name = f"sample {number} {digest_of(prompt, text)}"
    return continuation(whole, given, scorer.block_length, record=name, document=number)
