"""Checks of the pipeline behind a model's numbers: right text, right model, right sums.

Shapes: N blocks, L tokens.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ltm.data.split import Split
from ltm.errors import UserError
from ltm.evaluation.rows import padded
from ltm.latent.base import LatentModel
from ltm.progress import count
from ltm.rng import SequenceRng
from ltm.training.weights import weights_digest
from tasks.audit.checks.check import SAYS_NOTHING, CheckResult
from tasks.likelihood import perplexity_kind

if TYPE_CHECKING:
    from ltm.api import LoadedModel
    from ltm.harness import HarnessModel

ROUNDING = {"float64": 1e-6, "float32": 5e-5}
"""Relative difference that the order of sums may make, by dtype; `COARSE` in narrower ones."""
COARSE = 0.03
FITTED_ROUNDING = 1e-3
"""The same for a q that is fitted in float32: its steps carry rounding on."""
WORD_SPLIT = " the baker 's <unk> café sold N loaves for $ N each \n"
"""A line that detokenising makes shorter, in bytes and in words."""
PLAIN = "All of THIS  is text:\n\n\tcafé, “naïve” …  \n"
"""Letters, spaces and signs that tokenising must not lose."""


def accounting(model: HarnessModel, text: str) -> list[CheckResult]:
    """Check the bookkeeping of a text's numbers.

    Every token is scored once and BOS never; no likelihood is above certainty; named parts add up to the whole;
    perplexity and bits per byte follow from the totals and the raw text; a block has the same value alone, with others
    and in another order; an exact likelihood obeys the chain rule. This says nothing about whether the numbers are
    likelihoods.

    Args:
        text: a few blocks of text, the last one not full.
    """
    ids = model.loaded.tokenizer.encode(text)
    rows = [ids[start : start + model.block_length] for start in range(0, len(ids), model.block_length)]
    faults: dict[str, list[str]] = {name: [] for name in model.offered}
    _check_report(model, text, faults)
    worst = _check_rows(model, rows, faults)
    limit = rounding(model)
    return [
        CheckResult(
            name="accounting",
            likelihood=name,
            passed=not errors,
            value=worst.get(name, math.nan),
            limit=limit,
            detail="; ".join(errors)
            or f"{count(len(ids), 'tokens')} in {count(len(rows), 'blocks')}, each scored once; sums agree",
        )
        for name, errors in faults.items()
    ]


def _check_report(model: HarnessModel, text: str, faults: Mapping[str, list[str]]) -> None:
    """Compare the metrics that a perplexity task would report with totals, on text whose raw bytes differ."""
    raw = (WORD_SPLIT, text)
    split = Split.of("audit", "text", raw, unit="document", source={"kind": "audit"}, detokenizer="ptb")
    scored = "".join(split.iter_texts())
    if model.loaded.tokenizer.decode(model.loaded.tokenizer.encode(scored + PLAIN).tolist()) != scored + PLAIN:
        for errors in faults.values():
            errors.append("tokens do not decode to the text, so less is scored than the raw text's bytes and words")
    try:
        measured = perplexity_kind.score(model, "audit text", scored, split)
    except UserError as error:
        for errors in faults.values():
            errors.append(f"refused by the perplexity task: {error}")
        return
    tokens = len(model.loaded.tokenizer.encode(scored))
    if measured.tokens != tokens:
        for errors in faults.values():
            errors.append(f"{count(measured.tokens, 'tokens')} scored of {tokens}")
    words, size_of_raw = (sum(map(len, parts)) for parts in ((d.split() for d in raw), (d.encode() for d in raw)))
    for name, errors in faults.items():
        if not all(name in record for record in measured.records or ()):
            errors.append(f"the answers have no {name}: do they come from another model?")
            continue
        nats, counted = (math.fsum(record[part] for record in measured.records or ()) for part in (name, "tokens"))
        units = {"token_perplexity": counted, "word_perplexity": words, "bits_per_byte": None}
        for metric in measured.metrics:
            if metric.likelihood != name or metric.name not in units:
                continue
            size = units[metric.name]
            true = -nats / math.log(2) / size_of_raw if size is None else math.exp(-nats / size)
            if not math.isclose(metric.value, true, rel_tol=1e-9):
                errors.append(f"{metric.name} is reported as {metric.value:.6g}, its totals give {true:.6g}")


def _check_rows(model: HarnessModel, rows: Sequence[Any], faults: Mapping[str, list[str]]) -> dict[str, float]:
    """Score the blocks in one batch, reversed, one by one, and repeated to fill a batch (the headline only).

    Returns the largest relative difference for each likelihood.
    """
    reader, seed, limit = model.runner.scorer.model, model.runner.seed, rounding(model)

    def score(which: Sequence[int], only: str | None = None) -> Mapping[str, Any]:
        lengths = torch.tensor([len(rows[i]) for i in which])
        with torch.no_grad():
            return reader.log_likelihoods(
                padded([rows[i] for i in which]).to(model.device),
                lengths=lengths.to(model.device),
                rng=SequenceRng(seed, list(which)),
                draws=2,
                only=only,
            )

    everything = list(range(len(rows)))
    together, reverse = score(everything), score(everything[::-1])
    alone = [score([i]) for i in everything]
    headline, many = next(iter(together)), max(len(rows), model.runner.scorer.batch_size)
    full_N = score([i % len(rows) for i in range(many)], headline)[headline].nats_B.double()
    worst = {}
    for name, estimate in together.items():
        errors, nats_N = faults[name], estimate.nats_B.double()
        if not bool(torch.isfinite(nats_N).all()) or (float(nats_N.max()) > limit and estimate.kind != "upper_bound"):
            errors.append(f"nats of a block are {float(nats_N.max()):.6g}: above certainty, or not a number")
        if estimate.tokens_B.tolist() != [len(row) for row in rows]:
            errors.append(f"blocks of {[len(row) for row in rows]} tokens are reported as {estimate.tokens_B.tolist()}")
        if estimate.terms:
            parts_N = torch.stack([part_N.double() for part_N in estimate.terms.values()]).sum(0)
            if not torch.allclose(parts_N, nats_N, rtol=1e-6, atol=1e-6):
                errors.append("the named parts do not add up to the whole")
        apart_N = torch.cat([one[name].nats_B.double() for one in alone])
        scale_N = nats_N.abs().clamp(min=1)
        if "log_psi" in estimate.terms:
            # The tangent adds w / psi: what is off in log w is multiplied by it.
            log_psi_N = estimate.terms["log_psi"].double()
            scale_N = scale_N.maximum((nats_N - log_psi_N + 1) * log_psi_N.abs())
        off = torch.stack([(reverse[name].nats_B.double().flip(0) - nats_N) / scale_N, (apart_N - nats_N) / scale_N])
        worst[name] = float(off.abs().max())
        if not worst[name] <= limit:
            errors.append(f"a block's value depends on its batch: relative difference {worst[name]:.2g}")
        if name == headline:
            repeated_N = nats_N.repeat(many)[:many]
            apart = float(((full_N - repeated_N) / repeated_N.abs().clamp(min=1)).abs().max())
            worst[name] = max(worst[name], apart)
            if not apart <= limit:
                errors.append(f"it differs if scored alone, in a batch of {many}: relative difference {apart:.2g}")
        by_parts = estimate.kind == "exact" and model.loaded.model.chain_rule
        if by_parts and (broken := _chain_rule(model, rows, nats_N)) > limit:
            errors.append(f"log p(start) + log p(rest | start) differs from log p of the whole by {broken:.2g}")
    return worst


def _chain_rule(model: HarnessModel, rows: Sequence[Any], nats_N: torch.Tensor) -> float:
    reader, worst = model.runner.scorer.model, 0.0
    for row, nats in zip(rows, nats_N.tolist(), strict=True):
        tokens_1L = torch.from_numpy(row.astype(np.int64))[None].to(model.device)
        half, noise = len(row) // 2, SequenceRng(model.runner.seed, [0])
        if not half:
            continue
        with torch.no_grad():
            start = reader.log_likelihoods(tokens_1L[:, :half], rng=noise)
            rest = reader.log_likelihoods(tokens_1L, context=half, rng=noise)
        total = sum(float(next(iter(part.values())).nats_B) for part in (start, rest))
        worst = max(worst, abs(total - nats) / max(1.0, abs(nats)))
    return worst


def rounding(model: HarnessModel) -> float:
    """Return the relative difference between two claims about one text that rounding may make."""
    inner = model.loaded.model
    fitted = isinstance(inner, LatentModel) and inner.config.fast_steps is not None
    if fitted:
        return FITTED_ROUNDING if inner.inference_matmul in ROUNDING else COARSE
    return ROUNDING.get(model.runner.dtype, COARSE)


def depends_on_weights(model: HarnessModel, text: str) -> list[CheckResult]:
    """Check that answers come from this model: other weights change them, and a warm cache returns the model's own.

    This catches a cache that ignores the model or the text, and scores that ignore either. The checkpoint's digest, not
    this check, tells whether the weights are those that were trained.

    Args:
        text: at least two tokens of text.
    """
    first, shaken = _nats(model, text), shake(model.loaded)
    if shaken is None:
        detail = "the model has no weights to change"
        return [
            CheckResult(
                name="depends_on_weights", likelihood=None, passed=None, value=math.nan, limit=math.nan, detail=detail
            )
        ]
    other, again, fresh = _nats(model.like(shaken), text), _nats(model, text), _uncached(model, text)
    half = text[: max(1, len(text) // 2)]
    kept_half, fresh_half = _nats(model, half), _uncached(model, half)
    limit, results = rounding(model), []
    for name, nats in first.items():
        if nats > 0 and model.offered[name][0] == "upper_bound":
            unjudged: dict[str, Any] = {"passed": None, "value": math.nan, "limit": math.nan, "detail": SAYS_NOTHING}
            results.append(CheckResult(name="depends_on_weights", likelihood=name, **unjudged))
            continue
        moved, kept = abs(other[name] - nats), again[name] == nats
        off = abs(fresh[name] - nats) / max(1.0, abs(nats))
        off_half = abs(fresh_half[name] - kept_half[name]) / max(1.0, abs(fresh_half[name]))
        detail = f"other weights move it by {moved:.4g} nats, a warm cache not at all"
        if not moved:
            detail = "other weights give the same answer: is it cached under another model's name?"
        elif not (kept and off <= limit):
            detail = f"the cache says {again[name]:.6g}, the model itself {fresh[name]:.6g}"
        elif not off_half <= limit:
            detail = f"on other text the cache says {kept_half[name]:.6g}, the model itself {fresh_half[name]:.6g}"
        results.append(
            CheckResult(
                name="depends_on_weights",
                likelihood=name,
                passed=moved > 0 and kept and off <= limit and off_half <= limit,
                value=max(off, off_half),
                limit=limit,
                detail=detail,
            )
        )
    return results


def shake(loaded: LoadedModel, *, seed: int = 0) -> LoadedModel | None:
    """Return the same model with perturbed weights and their digest; None if there are no weights to change."""
    model, generator, changed = copy.deepcopy(loaded.model), torch.Generator().manual_seed(seed), False
    with torch.no_grad():
        for value in model.parameters():
            if not value.numel():
                continue
            changed = True
            if value.is_floating_point():
                noise = torch.randn(value.shape, generator=generator).to(value)
                value.add_(0.1 * noise * value.float().square().mean().sqrt().clamp(min=1e-3).to(value))
            else:  # counts
                value.mul_(2)
    info = {**loaded.info, "weights_digest": weights_digest(model.state_dict())}
    return dataclasses.replace(loaded, model=model, info=info) if changed else None


def _nats(model: HarnessModel, text: str) -> dict[str, float]:
    """Score a text through lm-eval's interface, and so through the cache."""
    from lm_eval.api.instance import Instance

    request = Instance(
        request_type="loglikelihood_rolling", doc={}, arguments=(text,), idx=0, metadata=("audit weights", 0, 1)
    )
    (value,) = model.loglikelihood_rolling([request])
    return {name: part.nats for name, part in value.likelihoods.items()}


def _uncached(model: HarnessModel, text: str) -> dict[str, float]:
    """Return what `_nats` does, with no answer cached, whatever windows the model reads a text in."""
    with tempfile.TemporaryDirectory() as folder:
        reader = model.like()
        reader.runner.cache_at = Path(folder)
        return _nats(reader, text)
