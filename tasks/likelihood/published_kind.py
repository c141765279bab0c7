"""Perplexity as a family's public code reports it: an estimate, never ranked, beside the number of our protocol."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from ltm.errors import UserError
from ltm.progress import scoring_progress
from ltm.published_protocol import PublishedProtocol, ScoresAsPublished, blocks_of
from ltm.result import Identity, Metric, Result
from ltm.rng import SequenceRng
from tasks import results
from tasks.kinds import Column, Measurement, Task
from tasks.likelihood.perplexity_kind import read

if TYPE_CHECKING:
    from ltm.harness import HarnessModel
    from tasks.catalog import TaskEntry
    from tasks.options import EvalOptions

METRIC = "published_perplexity"
BATCH_TOKENS = 4096


def perplexity(nats_B: np.ndarray, counted: int, *, mean_of_exp: bool) -> float:
    """Perplexity of blocks with `counted` positions each: exp of the mean per position, or its mean over blocks."""
    each = nats_B / counted
    return float(np.exp(each).mean() if mean_of_exp else np.exp(each.mean()))


def _formula(metric: Metric, result: Result, records: Sequence[Mapping[str, Any]]) -> float | None:
    nats_B, counted = np.array([row["nats"] for row in records]), records[0]["counted"]
    return perplexity(nats_B, counted, mean_of_exp=result.scoring["average"] == "mean of exp")


class PublishedPerplexity(Task):
    """The perplexity of a split by the scripts of a family's authors.

    Attributes:
        split: the raw text.
    """

    items = "blocks"
    columns: ClassVar[Sequence[Column]] = (Column(metric=METRIC, header="As published", form=".2f", sign=True),)
    formulas: ClassVar[Mapping[str, Callable[[Metric, Result, Sequence[Mapping[str, Any]]], float | None]]] = {
        METRIC: _formula
    }

    def __init__(self, entry: TaskEntry, options: EvalOptions):
        """Read the split."""
        super().__init__(entry, options)
        self.split = read(entry, options)
        self._cut: dict[tuple[str, PublishedProtocol, int], np.ndarray] = {}

    def unfit(self, model: HarnessModel) -> str | None:
        """Return that public code of the model's family is not known here, if so."""
        network = model.loaded.model
        known = isinstance(network, ScoresAsPublished)
        return None if known else f"how public code scores the family {network.family} is not known here"

    def _blocks(self, model: HarnessModel) -> tuple[np.ndarray, PublishedProtocol]:
        """Return the blocks (B, N) of the model's protocol. Raises UserError: the text is too short for one."""
        network: Any = model.loaded.model
        tokenizer, protocol = model.loaded.tokenizer, network.published_protocol()
        positions = network.block_length + 1
        key = (tokenizer.fingerprint, protocol, positions)
        if key not in self._cut:
            rows = tokenizer.encode_batch([text for text in self.split.iter_texts() if text])
            self._cut[key] = blocks_of(rows, protocol, eos=tokenizer.eos_id, positions=positions)
        blocks_BN = self._cut[key]
        if not len(blocks_BN):
            raise UserError(
                f"{self.entry.name}: the text fills no block of {positions} positions; public code drops it"
            )
        return blocks_BN if model.limit_blocks is None else blocks_BN[: model.limit_blocks], protocol

    def identity(self, model: HarnessModel) -> Identity:
        """Identify the result by blocks and by how they are averaged."""
        blocks_BN, protocol = self._blocks(model)
        return results.identity(
            self.entry,
            self.split,
            model,
            blocks=len(blocks_BN),
            tokens=int(blocks_BN.size - protocol.given * len(blocks_BN)),
            eos_between_documents=protocol.eos_after_rows,
            draws=1,
            likelihoods=["published"],
            average="mean of exp" if protocol.mean_of_exp else "exp of mean",
        )

    def measure(self, model: HarnessModel, identity: Identity) -> Measurement:
        """Score all blocks."""
        blocks_BN, protocol = self._blocks(model)
        network: Any = model.loaded.model
        positions, began = blocks_BN.shape[1], time.perf_counter()
        size, nats = max(1, BATCH_TOKENS // positions), []
        with scoring_progress(f"{model.runner.label} {self.entry.name}", rows=len(blocks_BN)) as advance:
            for start in range(0, len(blocks_BN), size):
                part = torch.from_numpy(blocks_BN[start : start + size]).to(network.device)
                rng = SequenceRng(model.runner.seed, range(start, start + len(part)))
                nats.append(network.published_nats(part, rng).double().cpu().numpy())
                advance(len(part), part.numel())
        nats_B, counted = np.concatenate(nats), positions - protocol.given
        if not np.isfinite(nats_B).all():
            raise UserError(f"{model.loaded.name} on {self.entry.name}: a block has no finite value")
        value = perplexity(nats_B, counted, mean_of_exp=protocol.mean_of_exp)
        common: dict[str, Any] = {"likelihood": "published", "headline": True, "kind": "estimate", "n": len(nats_B)}
        one = Metric(name=METRIC, unit="token", value=value, **common)
        complete = model.limit_blocks is None
        return Measurement(
            metrics=(one,),
            records=[{"block": block, "counted": counted, "nats": float(value)} for block, value in enumerate(nats_B)],
            data=results.data(self.split),
            seconds=time.perf_counter() - began,
            tokens=counted * len(nats_B),
            complete=complete,
            scored={"blocks": len(nats_B), "tokens": counted * len(nats_B), "draws": 1},
            notes=(f"as {protocol.source}: {protocol.told}; no bound, and never ranked",),
        )
