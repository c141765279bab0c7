"""Gen PPL: a scorer's perplexity on texts that another model wrote, in the scorer's own tokens.

The text is decoded, tokenised by the scorer and cut into its blocks like any other text, and each block is scored given
BOS. A continuation is scored given its prompt. Shapes: N texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ltm import statistics
from ltm.errors import UserError
from ltm.untrusted.json_text import LARGEST
from tasks.generation.metrics import metric
from tasks.models import label

if TYPE_CHECKING:
    from ltm.api import Kind
    from ltm.evaluation.rows import Row
    from ltm.harness import HarnessModel
    from ltm.result import Metric

_WORST_LAST: tuple[Kind, ...] = ("exact", "lower_bound", "estimate")
"""Kinds from the strongest to the weakest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredTexts:
    """A scorer's log-likelihoods of N texts.

    Attributes:
        likelihood: the scorer's headline likelihood, such as `exact` or `elbo`; several are joined by ` + `.
        kind: the weakest kind among them.
        nats_N, tokens_N: log-likelihood of each text, and the scorer's tokens in it; both 0 for an empty text.
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
    """Measure Gen PPL of a model's texts and of human texts, with notes; add the scorer's nats and tokens to `records`.

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
        human_scored = score(scorer, f"{task} human", [text for _, text in human], [prompt for prompt, _ in human])
        human_metrics = gen_ppl_metrics(human_scored, name, "human_")
        metrics += human_metrics
        notes.append(f"Gen PPL of human text by {name}: {human_metrics[0].value:.1f}; lower than that is not better")
    if scorer.loaded.tokenizer.fingerprint != model.loaded.tokenizer.fingerprint:
        notes.append(f"Gen PPL counts tokens of {scorer.loaded.tokenizer.name}, the tokenizer of {name}")
    if scorer.loaded.info["weights_digest"] == model.loaded.info["weights_digest"]:
        notes.append(f"{name} scored its own samples: its Gen PPL measures only its confidence")
    if scored.kind != "exact":
        notes.append(
            f"the likelihood of {name} ({scored.likelihood}) is not exact, so its Gen PPL is marked: {scored.kind}"
        )
    return metrics, notes


def score(scorer: HarnessModel, task: str, texts: Sequence[str], prompts: Sequence[str]) -> ScoredTexts:
    """Score each text given its prompt, which may be empty. Answers are cached, as all answers are.

    Args:
        task: name of the task; the noise depends on it, on the scorer's seed and on a text's index.
    """
    rows = [_rows(scorer, n, text, prompt) for n, (text, prompt) in enumerate(zip(texts, prompts, strict=True))]
    flat = [row for rows_of_text in rows for row in rows_of_text]
    answers = iter(scorer.runner.score(f"gen_ppl {task}", flat, companions=False))
    parts_N = [[_headline(next(answers)) for _ in rows_of_text] for rows_of_text in rows]
    every = [part for parts in parts_N for part in parts]
    known = bool(every) and all(part["mc_var"] is not None for part in every)
    return ScoredTexts(
        likelihood=" + ".join(sorted({part["name"] for part in every})) or scorer.loaded.model.headline(),
        kind=max((part["kind"] for part in every), key=_WORST_LAST.index, default="exact"),
        nats_N=np.array([math.fsum(part["nats"] for part in parts) for parts in parts_N], np.float64),
        tokens_N=np.array([sum(part["tokens"] for part in parts) for parts in parts_N], np.int64),
        mc_var_N=np.array([math.fsum(part["mc_var"] for part in parts) for parts in parts_N]) if known else None,
    )


def gen_ppl_metrics(scored: ScoredTexts, scorer: str, prefix: str = "") -> list[Metric]:
    """Compute Gen PPL, exp(total nats / total tokens), and as an estimate the mean of perplexities of some papers.

    Returns no metrics if the texts have no tokens.

    Raises:
        UserError: the number is too large for a float.
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
    if (value := statistics.mean_of_exp(scored.nats_N[some], scored.tokens_N[some])) <= LARGEST:
        legacy = statistics.Measured(value, None, None, None, "")
        metrics.append(
            metric(f"{prefix}gen_ppl_mean_of_exp[{scorer}]", legacy, "lower", kind="estimate", **common),
        )
    return metrics


def _headline(record: Any) -> dict[str, Any]:
    name = record["headline"]
    return {"name": name, **record["likelihoods"][name]}


def _rows(scorer: HarnessModel, number: int, text: str, prompt: str) -> list[Row]:
    """Return one row of prompt and text, cut on the left if too long; or the text in blocks, if there is no prompt."""
    from ltm.evaluation.rows import continuation, digest_of, joined

    whole, given = joined(scorer.loaded.tokenizer.encode, prompt, text)
    name = f"sample {number} {digest_of(prompt, text)}"
    return continuation(whole, given, scorer.block_length, record=name, document=number)
