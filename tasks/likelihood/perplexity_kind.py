"""Perplexity: the whole text of a split through a model, block by block. The metrics' units are in stats.py."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ltm.errors import UserError
from ltm.result import Metric
from tasks import results
from tasks.kinds import Column, Measurement

if TYPE_CHECKING:
    from ltm.data.split import Split
    from ltm.evaluation.likelihoods import BlockLikelihoods, LikelihoodFloat
    from ltm.harness import HarnessModel
    from tasks.catalog import TaskEntry

ITEMS = "blocks"
COLUMNS = (
    Column(metric="token_perplexity", header="Perplexity [95%]", form=".2f", interval=True, sign=True),
    Column(metric="bits_per_byte", header="Bits/byte", form=".4f", sign=True),
    Column(metric="kl_per_token", header="KL/token", form=".4f"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A split, its text as models see it, and the length of that text in tokens by tokenizer, once known."""

    split: Split
    text: str
    tokens: dict[str, int] = field(default_factory=dict)


def prepare(entry: TaskEntry, options: argparse.Namespace) -> Prepared:
    """The split of the task, or the file."""
    from ltm.data import corpora
    from ltm.data.separated_text import SeparatedText

    if entry.path is not None:
        split = corpora.load_file(entry.path)
    else:
        split = corpora.load(entry.corpus, entry.split, data_dir=options.data_dir)
    text = SeparatedText(split.iter_texts()) if options.eos_between_documents else "".join(split.iter_texts())
    return Prepared(split=split, text=text)


def identity(entry: TaskEntry, prepared: Prepared, model: HarnessModel, options: argparse.Namespace) -> dict[str, Any]:
    """What a result's key is made of, known before anything is scored; `model.limit_blocks` is part of it."""
    tokenizer = model.loaded.tokenizer
    if tokenizer.fingerprint not in prepared.tokens:
        prepared.tokens[tokenizer.fingerprint] = len(model.streams([prepared.text])[0])
    tokens = prepared.tokens[tokenizer.fingerprint]
    blocks = math.ceil(tokens / model.block_length)
    if model.limit_blocks is not None and model.limit_blocks < blocks:
        blocks, tokens = model.limit_blocks, model.limit_blocks * model.block_length
    _, draws = next(iter(model.offered.values()))
    return results.identity(
        entry,
        prepared.split,
        model,
        blocks=blocks,
        tokens=tokens,
        eos_between_documents=options.eos_between_documents,
        draws=draws,
        likelihoods=sorted(model.offered),
    )


def measure(entry: TaskEntry, prepared: Prepared, model: HarnessModel, options: argparse.Namespace) -> Measurement:
    """Score the text as lm-eval has it scored: one request for the whole of it.

    Raises:
        UserError: a perplexity is beyond all floats.
    """
    from lm_eval.api.instance import Instance

    request = Instance(
        request_type="loglikelihood_rolling",
        doc={},
        arguments=(prepared.text,),
        idx=0,
        metadata=(entry.name, 0, 1),
    )
    (value,) = model.loglikelihood_rolling([request])
    split = prepared.split
    try:
        metrics = [m for name in value.likelihoods for m in _metrics(name, value, split)]
    except ValueError as error:
        raise UserError(f"{model.loaded.name} on {entry.name}: {error}") from error
    return Measurement(
        metrics=tuple(metrics),
        records=_records(value),
        data=results.data(split),
        seconds=value.seconds,
        tokens=value.tokens,
        complete=value.complete,
        found={"blocks": len(value.blocks.nats_N), "tokens": value.tokens, "draws": value.draws},
    )


def _metrics(name: str, value: LikelihoodFloat, text: Split) -> list[Metric]:
    from tasks import stats

    part = value.likelihoods[name]
    cost = stats.nats_total(part.nats_N, part.tokens_N, part.mc_var_N)
    common: dict[str, Any] = {
        "likelihood": name,
        "headline": name == value.headline,
        "kind": part.kind,
        "n": len(part.nats_N),
    }
    found = [results.metric("token_perplexity", cost.perplexity(), unit="token", **common)]
    # The text's bytes and words are those of all of it.
    if value.complete:
        found.append(results.metric("word_perplexity", cost.perplexity(units=text.words), unit="word", **common))
        found.append(results.metric("bits_per_byte", cost.bits_per_byte(text.bytes), unit="byte", **common))
    mean_of_exp = stats.mean_of_exp(part.nats_N, part.tokens_N)
    if name == value.headline and value.complete and math.isfinite(mean_of_exp):
        # A legacy of published scripts, never what a model is ranked by.
        legacy = {**common, "headline": False, "kind": "estimate"}
        found.append(Metric(name="token_perplexity_mean_of_exp", unit="token", value=mean_of_exp, **legacy))
    if name == value.headline:
        found += [_term(term, part, common) for term in part.terms]
    return found


def _term(term: str, part: BlockLikelihoods, common: Mapping[str, Any]) -> Metric:
    from tasks import stats

    # A part of a bound bounds nothing by itself.
    value = stats.term_per_token(part.terms[term], part.tokens_N)
    return Metric(name=f"{term.lstrip('-')}_per_token", unit="token", value=value, **{**common, "kind": "estimate"})


def _records(value: LikelihoodFloat) -> list[dict[str, Any]]:
    return [
        {
            "block": block,
            "tokens": int(tokens),
            **{name: float(part.nats_N[block]) for name, part in value.likelihoods.items()},
        }
        for block, tokens in enumerate(value.blocks.tokens_N)
    ]
