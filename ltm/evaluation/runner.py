"""Run one model on rows and prompts, task by task; answers come from disk if they were computed before."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ltm.api import LoadedModel
from ltm.evaluation.batches import BatchScorer
from ltm.evaluation.cache import ResponseCache, open_for_all
from ltm.evaluation.code import class_name, code_digest
from ltm.evaluation.rows import Prompt, Row
from ltm.evaluation.unprefixed import Unprefixed
from ltm.files import home
from ltm.latent.prequential import Prequential
from ltm.progress import Advance, scoring_progress
from ltm.rng import SequenceRng, SplitNoise, seed_of


class Runner:
    """One model under one seed, number of draws and dtype, with its answers cached.

    Args:
        loaded: the model, in `dtype` and on its device.
        batch_size: rows per batch; None to choose. No number depends on it, beyond the rounding of floats.
        chunk: read whole texts in chunks of this many tokens; see `ltm.latent.prequential`.
        unprefixed: reads texts without our BOS; see `ltm.evaluation.unprefixed`.

    Attributes:
        label: how progress calls the model; its name, unless another of the same name is measured beside it.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        seed: int,
        draws: int | None,
        dtype: str,
        batch_size: int | None,
        chunk: int | None = None,
        unprefixed: Unprefixed | None = None,
    ):
        self.loaded = loaded
        self.seed = seed
        self.dtype = dtype
        self.chunk = chunk
        self.unprefixed = unprefixed
        self.label = loaded.name
        self.cache_at: Path | None = None
        self._generator = unprefixed or loaded.model
        reader = self._generator if chunk is None else Prequential(loaded.model, chunk)
        self.scorer = BatchScorer(reader, draws=draws, batch_size=batch_size)

    def noise(self, task: str, indices: Sequence[int]) -> SequenceRng:
        """The noise of some sequences of a task; it depends only on seed, task and index."""
        return SequenceRng(seed_of(self.seed, task), indices)

    def score(self, task: str, rows: Sequence[Row], *, companions: bool, part: int = 0) -> list[Any]:
        """Return the record of each row, in order; see `BatchScorer.score`.

        Args:
            part: number of these rows among the parts of a long text; each part has a file of answers of its own.
        """
        with self._at_work(task, [row.record for row in rows], part) as (cache, advance):
            seed = seed_of(self.seed, task)
            return self.scorer.score(rows, seed=seed, companions=companions, cache=cache, advance=advance)

    def generate(self, task: str, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Return new tokens for each prompt, in order."""
        return [record["tokens"] for record in self.generations(task, prompts)]

    def generations(self, task: str, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """Return the record of each prompt, in order: {"tokens": new ones, "network_evaluations": n, "seconds": s}."""
        with self._at_work(task, [prompt.record for prompt in prompts]) as (cache, advance):
            todo = {prompt.record: prompt for prompt in prompts if prompt.record not in cache}
            advance(len(prompts) - len(todo), 0)
            # A call has one answer length and one way of sampling; prompts of similar length decode best together.
            alike = defaultdict(list)
            for prompt in todo.values():
                alike[prompt.new_tokens, prompt.sampling].append(prompt)
            for same in alike.values():
                same.sort(key=lambda prompt: -len(prompt.tokens))
                for batch, records in self.scorer.in_batches(same, lambda batch: self._generated(task, batch)):
                    cache.add({prompt.record: record for prompt, record in zip(batch, records, strict=True)})
                    advance(len(batch), sum(len(record["tokens"]) for record in records))
            return [cache[prompt.record] for prompt in prompts]

    def _generated(self, task: str, batch: Sequence[Prompt]) -> list[dict[str, Any]]:
        started = time.perf_counter()
        generated = self._generator.generate(
            [prompt.tokens for prompt in batch],
            max_new_tokens=batch[0].new_tokens,
            sampling=batch[0].sampling,
            rng=SplitNoise(
                seed_of(self.seed, task),
                [prompt.index for prompt in batch],
                [prompt.index if prompt.latents is None else prompt.latents for prompt in batch],
            ),
        )
        seconds = (time.perf_counter() - started) / len(batch)
        return [
            {"tokens": new, "network_evaluations": evaluations, "seconds": seconds}
            for new, evaluations in zip(generated.tokens, generated.network_evaluations, strict=True)
        ]

    @contextmanager
    def _at_work(self, task: str, records: Sequence[str], part: int = 0) -> Iterator[tuple[ResponseCache, Advance]]:
        title = f"{self.label} {task}{f', part {part + 1}' if part else ''}".strip()
        work, circumstances = f"scoring of {title}", {**self.circumstances(task), **({"part": part} if part else {})}
        with (
            open_for_all(self.cache_directory, circumstances, records, work=work) as cache,
            scoring_progress(title, rows=len(records)) as advance,
        ):
            yield cache, advance

    @property
    def cache_directory(self) -> Path:
        """The directory of cached answers: `cache_at`, or the one in $LTM_HOME."""
        return self.cache_at or home() / "cache"

    def circumstances(self, task: str) -> dict[str, Any]:
        """Everything that can change an answer, besides the request itself: the key of the cache."""
        return {
            "version": version("latent-thought-bench"),
            "class": class_name(type(self.loaded.model)),
            "code": code_digest(type(self.loaded.model)),
            "weights": self.loaded.info["weights_digest"],
            "config": self.loaded.info["config_digest"],
            "tokenizer": self.loaded.tokenizer.fingerprint,
            "seed": self.seed,
            "draws": self.scorer.draws,
            "dtype": self.dtype,
            "task": task,
            **({} if self.chunk is None else {"chunk": self.chunk}),
            **({} if self.unprefixed is None else {"prefix": "none"}),
            **({} if (matmul := self.loaded.model.inference_matmul) is None else {"matmul": matmul}),
        }
