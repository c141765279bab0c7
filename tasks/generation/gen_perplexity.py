"""Gen PPL: the perplexity of a scorer on texts that another model wrote, in the scorer's own tokens.

The text is decoded and tokenised again, whatever tokens it was made of, cut into blocks of the scorer as any text is,
and each block is scored given BOS. A continuation is scored given its prompt. Shapes: N texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ltm import statistics
from ltm.errors import UserError
from tasks.generation.metrics import metric
from tasks.models import label

if TYPE_CHECKING:
    from ltm.api import Kind
    from ltm.evaluation.rows import Row
    from ltm.harness import HarnessModel
    from ltm.result import Metric

_WORST_LAST: tuple[Kind, ...] = ("exact", "lower_bound", "estimate")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTexts:
    """A scorer's log-likelihoods of N texts.

    Attributes:
        likelihood: the scorer's headline, such as `exact` or `elbo`; several are joined by ` + `.
        kind: the weakest kind among them.
        nats_N, tokens_N: log-likelihood of each text and the scorer's tokens in it; 0 and 0 for an empty one.
        mc_var_N: Monte Carlo variance of `nats_N`; None when exact or unknown.
    """

    likelihood: str
    kind: Kind
    nats_N: np.ndarray
    tokens_N: np.ndarray
    mc_var_N: np.ndarray | None


def gen_ppl(
    task: str,
    scorer: HarnessModel,
    model: HarnessModel,
    written: Sequence[tuple[str, str]],
    human: Sequence[tuple[str, str]],
    records: list[dict[str, Any]],
) -> tuple[list[Metric], list[str]]:
    """Measure Gen PPL of a model's texts and of human ones, with notes; each record gets the scorer's nats and tokens.

    Args:
        written, human: pairs of a prompt, which may be empty, and the text after it.
    """
    name, metrics, notes = label(scorer), [], []
    scored = score(scorer, task, [text for _, text in written], [prompt for prompt, _ in written])
    for record, nats, tokens in zip(records, scored.nats_N.tolist(), scored.tokens_N.tolist(), strict=True):
        record |= {"scorer_nats": nats, "scorer_tokens": tokens}
    metrics += gen_ppl_metrics(scored, name)
    if not scored.tokens_N.sum():
        notes.append("the scorer found nothing to score: no Gen PPL")
    if len(human):
        people = score(scorer, f"{task} human", [text for _, text in human], [prompt for prompt, _ in human])
        of_people = gen_ppl_metrics(people, name, "human_")
        metrics += of_people
        notes.append(f"Gen PPL of human text by {name}: {of_people[0].value:.1f}; lower than that is not better")
    if scorer.loaded.tokenizer.fingerprint != model.loaded.tokenizer.fingerprint:
        notes.append(f"Gen PPL counts tokens of {scorer.loaded.tokenizer.name}, in which {name} read the texts anew")
    if scorer.loaded.info["weights_digest"] == model.loaded.info["weights_digest"]:
        notes.append(f"{name} scored its own samples: its Gen PPL says how sure it is of itself")
    if scored.kind != "exact":
        notes.append(
            f"the likelihood of {name} ({scored.likelihood}) is not exact, so its Gen PPL is marked: {scored.kind}"
        )
    return metrics, notes


def score(scorer: HarnessModel, task: str, texts: Sequence[str], prompts: Sequence[str]) -> ScoredTexts:
    """Score each text given its prompt, which may be empty. Answers are kept, as all answers are.

    Args:
        task: whose texts they are; it determines the noise, with the scorer's seed and the index of a text.
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


def gen_ppl_metrics(scored: ScoredTexts, scorer: str, prefix: str = "") -> list[Metric]:
    """Gen PPL, exp(total nats / total tokens), and as an estimate the mean of perplexities that some papers report.

    Empty for texts without a token.

    Raises:
        UserError: the number is beyond all floats.
    """
    if not scored.tokens_N.sum():
        return []
    some = scored.tokens_N > 0
    variances = None if scored.mc_var_N is None else scored.mc_var_N[some]
    try:
        measured = statistics.nats_total(scored.nats_N[some], scored.tokens_N[some], variances).perplexity()
    except ValueError as error:
        raise UserError(f"no Gen PPL by {scorer}: {error}") from error
    common: dict[str, Any] = {"unit": "token", "n": int(some.sum())}
    measured = measured._replace(method=measured.method.replace("block", "sample"))
    metrics = [metric(f"{prefix}gen_ppl[{scorer}]", measured, "lower", kind=scored.kind, **common)]
    if np.isfinite(value := statistics.mean_of_exp(scored.nats_N[some], scored.tokens_N[some])):
        legacy = statistics.Measured(value, None, None, None, "")
        metrics.append(
            metric(f"{prefix}gen_ppl_mean_of_exp[{scorer}]", legacy, "lower", kind="estimate", **common),
        )
    return metrics


def _headline(record: Any) -> dict[str, Any]:
    name = record["headline"]
    return {"name": name, **record["likelihoods"][name]}


def _rows(scorer: HarnessModel, number: int, text: str, prompt: str) -> list[Row]:
    """The text as one row after its prompt, cut on the left where both are too long, or in blocks without prompt."""
    from ltm.evaluation.rows import continuation, digest_of, joined

    whole, given = joined(scorer.loaded.tokenizer.encode, prompt, text)
    name = f"sample {number} {digest_of(prompt, text)}"
    return continuation(whole, given, scorer.block_length, record=name, document=number)
