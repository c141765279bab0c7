"""Perplexity of texts read in chunks: z is inferred from what went before, without a KL (ltm/latent/prequential.py)."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from ltm.errors import UserError
from tasks.kinds import Column, Measurement
from tasks.likelihood import perplexity_kind

if TYPE_CHECKING:
    from ltm.harness import HarnessModel
    from tasks.catalog import TaskEntry

ITEMS = "blocks"
COLUMNS = (
    *perplexity_kind.COLUMNS[:2],
    Column(metric="chunk", header="Chunk", form=".0f"),
    Column(metric="score_flops_per_token", header="FLOPs/token", form=".2e"),
)
CHUNKS = 8
"""How many a block is cut into by default."""


def prepare(entry: TaskEntry, options: argparse.Namespace) -> Any:
    """The split of the task."""
    if options.chunk is not None and options.chunk < 1:
        raise UserError(f"--chunk: expected a whole number of tokens, at least 1, found {options.chunk}")
    return perplexity_kind.prepare(entry, options)


def identity(entry: TaskEntry, prepared: Any, model: HarnessModel, options: argparse.Namespace) -> dict[str, Any]:
    """As of a perplexity, and the chunks; an exact likelihood is the same in any."""
    reader = _in_chunks(model, options)
    found = perplexity_kind.identity(entry, prepared, reader, options)
    return {**found, "scoring": {**found["scoring"], "chunk": reader.runner.chunk}}


def measure(entry: TaskEntry, prepared: Any, model: HarnessModel, options: argparse.Namespace) -> Measurement:
    """As a perplexity, of the model reading in chunks."""
    from ltm.latent.prequential import Prequential
    from ltm.result import Metric

    reader = _in_chunks(model, options)
    found = perplexity_kind.measure(entry, prepared, reader, options)
    scored = reader.runner.scorer.model
    if not isinstance(scored, Prequential):
        return found
    draws = next(iter(reader.offered.values()))[1]
    flops = scored.score_flops_per_token(reader.block_length, draws)
    common: dict[str, Any] = {"likelihood": None, "headline": False, "kind": "exact", "n": len(found.records)}
    return dataclasses.replace(
        found,
        metrics=(
            *found.metrics,
            Metric(name="chunk", unit="token", value=scored.chunk, **common),
            Metric(name="score_flops_per_token", unit="token", value=flops, **common),
        ),
        cost={"score_flops_per_token": flops},
    )


def _in_chunks(model: HarnessModel, options: argparse.Namespace) -> HarnessModel:
    from ltm.harness import HarnessModel

    return HarnessModel(
        pretrained=model.loaded,
        draws=model.runner.scorer.draws,
        seed=model.runner.seed,
        device=str(model.device),
        batch_size=options.batch_size,
        dtype=model.runner.dtype,
        headline_only=True,
        limit_blocks=model.limit_blocks,
        prequential=-(-model.block_length // CHUNKS) if options.chunk is None else options.chunk,
    )
