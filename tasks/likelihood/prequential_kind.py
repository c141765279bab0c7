"""Prequential perplexity: read texts in chunks, inferring z from what went before (ltm/latent/prequential.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ltm.result import Identity, Metric
from tasks.kinds import Column, Measurement
from tasks.likelihood.perplexity_kind import Perplexity

if TYPE_CHECKING:
    from ltm.harness import HarnessModel

CHUNKS = 8
"""Chunks per block by default."""


class PrequentialPerplexity(Perplexity):
    """The prequential perplexity of a split."""

    columns: ClassVar[Sequence[Column]] = (
        *Perplexity.columns[:2],
        Column(metric="chunk", header="Chunk", form=".0f"),
        Column(metric="score_flops_per_token", header="FLOPs/token", form=".2e"),
    )

    def identity(self, model: HarnessModel) -> Identity:
        """Add the chunk length to the identity of a perplexity; None if exact, since chunks then change nothing."""
        reader = self._reader(model)
        whole = super().identity(reader)
        return dataclasses.replace(whole, scoring={**whole.scoring, "chunk": reader.runner.chunk})

    def measure(self, model: HarnessModel, identity: Identity) -> Measurement:
        """Measure the perplexity of the model reading in chunks."""
        from ltm.latent.prequential import Prequential

        reader = self._reader(model)
        measurement = super().measure(reader, identity)
        scored = reader.runner.scorer.model
        if not isinstance(scored, Prequential):
            return measurement
        draws = next(iter(reader.offered.values()))[1]
        flops = scored.score_flops_per_token(reader.block_length, draws)
        common: dict[str, Any] = {
            "likelihood": None,
            "headline": False,
            "kind": "exact",
            "n": identity.scoring["blocks"],
        }
        return dataclasses.replace(
            measurement,
            metrics=(
                *measurement.metrics,
                Metric(name="chunk", unit="token", value=scored.chunk, **common),
                Metric(name="score_flops_per_token", unit="token", value=flops, **common),
            ),
            cost={"score_flops_per_token": flops},
        )

    def _reader(self, model: HarnessModel) -> HarnessModel:
        chunk = -(-model.block_length // CHUNKS) if self.options.chunk is None else self.options.chunk
        return model.like(prequential=chunk, headline_only=True)
