"""Perplexity: score the whole text of a split block by block. `ltm.statistics` converts the units."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, overload

from ltm import statistics
from ltm.data import corpora
from ltm.data.tokens.text import CorpusText
from ltm.errors import UserError
from ltm.result import Identity, Metric
from ltm.untrusted.json_lines import LINES
from ltm.untrusted.json_text import LARGEST
from tasks import results
from tasks.kinds import Column, Measurement, Task

if TYPE_CHECKING:
    from ltm.data.split import Split
    from ltm.evaluation.likelihoods import BlockLikelihoods, LikelihoodFloat
    from ltm.harness import HarnessModel
    from tasks.catalog import TaskEntry
    from tasks.options import EvalOptions


def read(entry: TaskEntry, options: EvalOptions) -> Split:
    """Return the split or the file that a task scores, or the excerpt of it that the options ask for."""
    if entry.path is not None:
        split = corpora.load_file(entry.path, reading=options.reading)
    else:
        split = corpora.load(entry.corpus, entry.split, data_dir=options.data_dir, reading=options.reading)
    return split if options.excerpt is None else split.excerpt(options.excerpt)


class Perplexity(Task):
    """The perplexity of a split, or of one text file.

    Attributes:
        split: the raw text.
        text: the text as models see it.
    """

    items = "blocks"
    columns: ClassVar[Sequence[Column]] = (
        Column(metric="token_perplexity", header="Perplexity [95%]", form=".2f", interval=True, sign=True),
        Column(metric="bits_per_byte", header="Bits/byte", form=".4f", sign=True),
        Column(metric="kl_per_token", header="KL/token", form=".4f"),
    )

    def __init__(self, entry: TaskEntry, options: EvalOptions):
        """Read the split, or the file."""
        super().__init__(entry, options)
        self.split = read(entry, options)
        self.text = CorpusText(self.split, separated=options.eos_between_documents)
        self._tokens: dict[str, int] = {}

    def stream_tokens(self, model: HarnessModel) -> int:
        """Return the number of tokens of the text under the model's tokenizer; counted once per tokenizer."""
        fingerprint = model.loaded.tokenizer.fingerprint
        if fingerprint not in self._tokens:
            self._tokens[fingerprint] = len(model.streams([self.text])[0])
        return self._tokens[fingerprint]

    def identity(self, model: HarnessModel) -> Identity:
        """Identify the result by blocks, tokens and likelihoods; `model.limit_blocks` limits the blocks."""
        tokens = self.stream_tokens(model)
        blocks = math.ceil(tokens / model.block_length)
        if model.limit_blocks is not None and model.limit_blocks < blocks:
            blocks, tokens = model.limit_blocks, model.limit_blocks * model.block_length
        _, draws = next(iter(model.offered.values()))
        return results.identity(
            self.entry,
            self.split,
            model,
            blocks=blocks,
            tokens=tokens,
            eos_between_documents=self.options.eos_between_documents,
            draws=draws,
            likelihoods=sorted(model.offered),
        )

    def measure(self, model: HarnessModel, identity: Identity) -> Measurement:
        """Score the text as lm-eval would, in one request.

        Raises:
            UserError: a perplexity is too large for a float.
        """
        return score(model, self.entry.name, self.text, self.split)


def score(model: HarnessModel, task: str, text: str | CorpusText, split: Split) -> Measurement:
    """Score a text and compute its metrics.

    Args:
        task: name of the task; the noise depends on it.
        text: as the model sees it.
        split: the raw text, whose words and bytes count.

    Raises:
        UserError: a perplexity is too large for a float.
    """
    from lm_eval.api.instance import Instance

    request = Instance(request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0, metadata=(task, 0, 1))
    (value,) = model.loglikelihood_rolling([request])
    try:
        metrics = [m for name in value.likelihoods for m in _metrics(name, value, split)]
    except ValueError as error:
        raise UserError(f"{model.loaded.name} on {task}: {error}") from error
    return Measurement(
        metrics=tuple(metrics),
        records=records if len(records := _Records(value)) <= LINES else None,
        data=results.data(split),
        seconds=value.seconds,
        tokens=value.tokens,
        complete=value.complete,
        scored={"blocks": len(value.blocks.nats_N), "tokens": value.tokens, "draws": value.draws},
    )


def _metrics(name: str, value: LikelihoodFloat, split: Split) -> list[Metric]:
    part = value.likelihoods[name]
    total = statistics.nats_total(part.nats_N, part.tokens_N, part.mc_var_N)
    # No perplexity is below 1: such a bound says nothing, and may be too low for a float.
    if name != value.headline and total.nats < 0:
        return []
    common: dict[str, Any] = {
        "likelihood": name,
        "headline": name == value.headline,
        "kind": part.kind,
        "n": len(part.nats_N),
    }
    metrics = [results.metric("token_perplexity", total.perplexity(), unit="token", **common)]
    # Bytes and words are counted over the whole text only.
    if value.complete:
        metrics.append(results.metric("word_perplexity", total.perplexity(units=split.words), unit="word", **common))
        metrics.append(results.metric("bits_per_byte", total.bits_per_byte(split.bytes), unit="byte", **common))
    mean_of_exp = statistics.mean_of_exp(part.nats_N, part.tokens_N)
    if name == value.headline and value.complete and mean_of_exp <= LARGEST:
        # Some published scripts report it; models are never ranked by it.
        legacy = {**common, "headline": False, "kind": "estimate"}
        metrics.append(Metric(name="token_perplexity_mean_of_exp", unit="token", value=mean_of_exp, **legacy))
    if part.kind == "upper_bound" and part.mc_var_N is not None:
        sure = statistics.perplexity(
            (total.nats - statistics.ONE_SIDED_95 * math.sqrt(part.mc_var_N.sum())) / total.tokens
        )
        metrics.append(Metric(name="token_perplexity_at_least", unit="token", value=sure, **common))
    if name == value.headline:
        metrics += [_term(term, part, common) for term in part.terms]
        if part.fast_steps_N is not None:
            mean_steps = float(part.fast_steps_N.mean())
            metrics.append(Metric(name="fast_steps", unit="block", value=mean_steps, **{**common, "kind": "exact"}))
    return metrics


def _term(term: str, part: BlockLikelihoods, common: Mapping[str, Any]) -> Metric:
    # A part of a bound bounds nothing by itself.
    value = statistics.term_per_token(part.terms[term], part.tokens_N)
    return Metric(name=f"{term.lstrip('-')}_per_token", unit="token", value=value, **{**common, "kind": "estimate"})


def _reliability(part: BlockLikelihoods) -> Mapping[str, Any]:
    """What the trust in an upper bound rests on: `effective` draws, `tail` index, and `mc_var`."""
    known = part.reliability and part.mc_var_N is not None
    return {**part.reliability, "mc_var": part.mc_var_N} if known else part.reliability


class _Records(Sequence[dict[str, Any]]):
    """The record of each block, made when it is asked for."""

    def __init__(self, value: LikelihoodFloat):
        self._value = value

    def __len__(self) -> int:
        return len(self._value.blocks.tokens_N)

    @overload
    def __getitem__(self, block: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, block: slice) -> list[dict[str, Any]]: ...

    def __getitem__(self, block: int | slice) -> Any:
        if isinstance(block, slice):
            return [self[one] for one in range(*block.indices(len(self)))]
        blocks = self._value.blocks
        return {
            "block": range(len(self))[block],
            "tokens": int(blocks.tokens_N[block]),
            **{name: float(part.nats_N[block]) for name, part in self._value.likelihoods.items()},
            **{
                f"{name}_{of}": float(values_N[block])
                for name, part in self._value.likelihoods.items()
                for of, values_N in _reliability(part).items()
            },
            **({} if blocks.fast_steps_N is None else {"fast_steps": int(blocks.fast_steps_N[block])}),
        }
