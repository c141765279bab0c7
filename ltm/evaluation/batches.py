"""Score rows of tokens in batches, skipping what the cache holds and refusing numbers that are not finite.

Shapes: B rows of a batch, L tokens.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from ltm.api import LanguageModel, LikelihoodEstimate
from ltm.errors import UserError, first_line, out_of_memory
from ltm.evaluation.cache import ResponseCache
from ltm.evaluation.memory import rows_that_fit
from ltm.evaluation.rows import Row, padded
from ltm.evaluation.unprefixed import Unprefixed
from ltm.latent.prequential import Prequential
from ltm.processes import of_each, rank, world_size
from ltm.progress import Advance
from ltm.rng import SequenceRng

log = logging.getLogger(__name__)

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class BatchScorer:
    """Scores rows with one model.

    Args:
        draws: Monte Carlo draws of the headline; the model's default when None.
        batch_size: rows per batch, or None to choose by the length of a block and by what memory holds, as measured on
            the longest row of the first task. It is halved where memory does not hold that many after all; no number
            depends on it.
    """

    def __init__(self, model: LanguageModel | Prequential | Unprefixed, *, draws: int | None, batch_size: int | None):
        self.model = model
        self.draws = draws
        self.device = model.device
        tokens_per_batch = 8192 if self.device.type == "cpu" else 65536
        self._measured = batch_size is not None
        self.batch_size = batch_size or min(64, max(1, tokens_per_batch // model.block_length))

    def score(
        self, rows: Sequence[Row], *, seed: int, companions: bool, cache: ResponseCache, advance: Advance
    ) -> list[Any]:
        """Return the record of each row, in order: {"seconds": s, "likelihoods": {name: {"nats": ..., ...}}}.

        Args:
            seed: seed of the noise; together with a row's index it determines all noise of that row.
            companions: compute every likelihood that the model offers, rather than the headline alone.

        Raises:
            UserError: the model gives NaN or Inf, or scores other tokens than it was given.
        """
        for row in rows:
            if row.record in cache:
                advance(1, 0)
        # A model offers other likelihoods with context than without, so the two are never mixed. Rows are sorted by
        # length to save padding.
        todo = {row.record: row for row in rows if row.record not in cache}
        for given in (False, True):
            waiting = sorted((r for r in todo.values() if (r.context > 0) == given), key=lambda r: -len(r.tokens))
            if waiting and not self._measured:
                self._measured = True
                one = functools.partial(self._batch, waiting[:1], seed, companions)
                # The least over all processes, which share one list of batches.
                self.batch_size = min(of_each(lambda one=one: rows_that_fit(self.batch_size, self.device, one)))  # type: ignore[misc]
            for batch, records in self.in_batches(waiting, lambda batch: self._batch(batch, seed, companions)):
                cache.add({row.record: record for row, record in zip(batch, records, strict=True)})
                advance(len(batch), sum(len(row.tokens) - row.context for row in batch))
        return [cache[row.record] for row in rows]

    def in_batches(
        self, items: Sequence[Item], compute: Callable[[Sequence[Item]], Answer]
    ) -> Iterator[tuple[Sequence[Item], Answer]]:
        """Yield consecutive batches of items, each with what `compute` makes of it.

        Several processes share the batches out, one to each in turn, and exchange what they made of them before the
        next, so that every process yields all of them and no more than one batch of each is lost when they are stopped.
        The batches are those of one process, since floats are rounded differently in others.

        A batch that memory does not hold is tried again at half the size, as are all later ones of the process.

        Raises:
            UserError: memory does not hold a single item.
        """
        batches = [items[start : start + self.batch_size] for start in range(0, len(items), self.batch_size)]
        if world_size() == 1:
            for batch in batches:
                yield from self._halved(batch, compute)
            return
        for start in range(0, len(batches), world_size()):
            # Each process makes something of its own batch, the last ones perhaps of none.
            own = start + rank()
            of_own = functools.partial(self._halved, batches[own] if own < len(batches) else [], compute)
            for computed in of_each(lambda made=of_own: list(made())):  # type: ignore[misc]
                yield from computed

    def _halved(
        self, items: Sequence[Item], compute: Callable[[Sequence[Item]], Answer]
    ) -> Iterator[tuple[Sequence[Item], Answer]]:
        """Yield batches that memory holds, of items that may be too many for it."""
        while items:
            batch = items[: self.batch_size]
            try:
                answer = compute(batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise UserError(
                        f"out of memory on {self.device} with a batch of one: {first_line(error)}. Free memory "
                        "there, or try another --device, --dtype bfloat16, --headline-only, fewer --draws, or a "
                        "smaller model; finished work is kept"
                    ) from error
                # Nothing is freed here, where the error still holds what was computed.
                self.batch_size = len(batch) // 2
                log.warning("out of memory on %s: going on with batches of %d", self.device, self.batch_size)
                continue
            finally:
                if self.device.type == "cuda" and self.batch_size < len(batch):
                    torch.cuda.empty_cache()
            yield batch, answer
            items = items[len(batch) :]

    def _batch(self, batch: Sequence[Row], seed: int, companions: bool) -> list[Any]:
        started = time.perf_counter()
        lengths_B = torch.tensor([len(row.tokens) for row in batch])
        contexts_B = torch.tensor([row.context for row in batch])
        tokens_BL = padded([row.tokens for row in batch])
        context = contexts_B.to(self.device) if contexts_B.any() else 0
        headline = self.model.headline(context)
        with torch.no_grad():
            estimates = self.model.log_likelihoods(
                tokens_BL.to(self.device),
                context=context,
                lengths=None if bool((lengths_B == tokens_BL.shape[1]).all()) else lengths_B.to(self.device),
                draws=self.draws,
                rng=SequenceRng(seed, [row.index for row in batch]),
                only=None if companions else headline,
            )
        likelihoods = {name: _plain(estimate) for name, estimate in estimates.items()}
        seconds = (time.perf_counter() - started) / len(batch)
        records = []
        for b, row in enumerate(batch):
            parts_by_name = {
                name: {
                    **parts,
                    **{part: parts[part][b] for part in ("nats", "tokens")},
                    "mc_var": None if parts["mc_var"] is None else parts["mc_var"][b],
                    "terms": {term: values[b] for term, values in parts["terms"].items()},
                    **(
                        {"reliability": {n: v[b] for n, v in parts["reliability"].items()}}
                        if "reliability" in parts
                        else {}
                    ),
                    **({"fast_steps": parts["fast_steps"][b]} if "fast_steps" in parts else {}),
                }
                for name, parts in likelihoods.items()
            }
            _check(parts_by_name, row, headline)
            records.append({"seconds": seconds, "headline": headline, "likelihoods": parts_by_name})
        return records


def _plain(estimate: LikelihoodEstimate) -> dict[str, Any]:
    steps_B = estimate.fast_steps_B
    return {
        "kind": estimate.kind,
        "draws": estimate.draws,
        "averaged": estimate.averaged,
        "nats": estimate.nats_B.double().tolist(),
        "tokens": estimate.tokens_B.tolist(),
        "mc_var": None if estimate.mc_var_B is None else estimate.mc_var_B.double().tolist(),
        "terms": {name: part_B.double().tolist() for name, part_B in estimate.terms.items()},
        **({} if steps_B is None else {"fast_steps": steps_B.tolist()}),
        **(
            {"reliability": {n: v_B.double().tolist() for n, v_B in estimate.reliability.items()}}
            if estimate.reliability
            else {}
        ),
    }


def _check(likelihoods: Mapping[str, Any], row: Row, headline: str) -> None:
    if headline not in likelihoods:
        raise UserError(
            f"{row.record}: the model's headline is {headline}, but it gave {', '.join(likelihoods) or 'nothing'}"
        )
    if likelihoods[headline]["kind"] == "upper_bound":
        raise UserError(
            f"{row.record}: {headline}, an upper bound on log p, is the headline; models are not ranked by one"
        )
    for name, parts in likelihoods.items():
        numbers = {"nats": parts["nats"], "mc_var": parts["mc_var"] or 0.0, **parts["terms"]}
        numbers |= parts.get("reliability", {})
        for part, value in numbers.items():
            if not math.isfinite(value):
                raise UserError(
                    f"{row.record}: {part} of {name} is {value}; nothing is recorded of it. Are the weights sound? "
                    "dtype=float32 rules out overflow"
                )
        expected = len(row.tokens) - row.context
        if parts["tokens"] != expected:
            raise UserError(
                f"{row.record}: {name} covers {parts['tokens']} tokens, expected {expected}; nothing is recorded"
            )
