"""Invented results and boards of them, for the tests of the result files and of the leaderboard."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import Any

from leaderboard.board import Board, board
from leaderboard.content.document import Part, Value
from leaderboard.entries import load
from ltm.config import digest
from ltm.result import Interval, Metric, Result, write_result

BYTES_PER_TOKEN, WORDS_PER_TOKEN = 3.5, 0.7


def metrics(
    nats: float, *, likelihood: str, kind: Any, headline: bool, half_width: float = 0.02, n: int = 20
) -> list[Metric]:
    """Token and word perplexity and bits per byte of a likelihood of `nats` per token."""

    def interval(convert: Any) -> Interval:
        return Interval(low=convert(nats - half_width), high=convert(nats + half_width), method="bootstrap over blocks")

    units = {
        "token_perplexity": ("token", math.exp),
        "word_perplexity": ("word", lambda x: math.exp(x / WORDS_PER_TOKEN)),
        "bits_per_byte": ("byte", lambda x: x / BYTES_PER_TOKEN / math.log(2)),
    }
    return [
        Metric(
            name=name,
            likelihood=likelihood,
            headline=headline,
            unit=unit,
            value=convert(nats),
            kind=kind,
            stderr_mc=None if kind == "exact" else 0.01,
            stderr_data=0.1,
            ci95=interval(convert),
            n=n,
        )
        for name, (unit, convert) in units.items()
    ]


def make_result(
    *,
    name: str = "ltm-tiny",
    family: str = "ltm",
    nats: float = 3.2,
    half_width: float = 0.02,
    task_name: str = "ltm_pydocs",
    fingerprint: str = "d" * 64,
    training_seed: int = 0,
    tokens: int = 2_000_000,
    status: Any = "complete",
    scoring: dict[str, Any] | None = None,
    **sections: dict[str, Any],
) -> Result:
    """A result of an LTM (`family="ltm"`) or of an exact model; `sections` replace fields, `training={"tokens": 1}`."""
    latent = family == "ltm"
    kind = "lower_bound" if latent else "exact"
    values = metrics(nats, likelihood="elbo" if latent else "exact", kind=kind, headline=True, half_width=half_width)
    if latent:
        values += metrics(nats - 0.05, likelihood="importance_bound", kind="lower_bound", headline=False)
        values += metrics(nats - 0.3, likelihood="reused_noise_estimate", kind="estimate", headline=False)
        for term, value in (("kl_per_token", 0.01), ("reconstruction_per_token", nats - 0.01)):
            values.append(
                Metric(name=term, likelihood="elbo", headline=True, unit="token", value=value, kind="estimate", n=20)
            )
    data: dict[str, Any] = {
        "model": {
            "name": name,
            "family": family,
            "config": {"width": 128, "of": name},
            "config_digest": digest({"width": 128, "of": name}),
            "weights_digest": digest(["weights", name, training_seed, tokens]),
        },
        "training": {
            "corpus": "pydocs",
            "data_fingerprint": "a" * 64,
            "tokens": tokens,
            "steps": 1000,
            "seconds": 60.0,
            "flops": 3e13,
            "paper_flops": 2e13,
            "seed": training_seed,
            "device": "cpu",
            "dtype": "float32",
            "complete": True,
        },
        "task": {"name": task_name, "version": 1.0, "split": "validation"},
        "data": {
            "corpus": "pydocs",
            "fingerprint": fingerprint,
            "bytes": 17850,
            "words": 3570,
            "documents": 7,
            "source": {"kind": "embedded"},
        },
        "tokenizer": {"name": "bpe-4096", "fingerprint": "b" * 64},
        "scoring": {
            "block_length": 255,
            "blocks": 20,
            "tokens": 5100,
            "eos_between_documents": False,
            "seed": 0,
            "draws": 8 if latent else 0,
            "dtype": "float32",
            **(scoring or {}),
        },
        "cost": {
            "parameters": 1_234_567,
            "paper_train_flops_per_token": 4.07e9,
            "train_flops_per_token": 3.9e9,
            "score_flops_per_token": 1.1e9,
            "generate_flops_per_token": 2.5e6,
        },
        "provenance": {
            "commit": "c" * 40,
            "dirty": False,
            "command": "ltm-eval --model ltm-tiny --tasks pydocs",
            "versions": {"python": "3.11.7"},
            "device": "cpu",
            "wall_seconds": 12.5,
            "tokens_per_second": 408.0,
            "date": "2026-01-02T03:04:05Z",
        },
    }
    for section, fields in sections.items():
        data[section] = {**data[section], **fields}
    return Result(status=status, metrics=tuple(values), **data)


def scored(name: str, shift: float, *, seed: int = 0, **changes: Any) -> tuple[Result, list[dict]]:
    """A result with records: the text's own variation is shared, a model's own is small."""
    text, noise = random.Random(1), random.Random(name)
    values = [-255 * 3.2 + 40 * text.gauss(0, 1) - 255 * shift + noise.gauss(0, 1) for _ in range(20)]
    result = make_result(name=name, family="ar", nats=-sum(values) / 5100, training_seed=seed, **changes)
    return result, [{"block": i, "tokens": 255, "exact": value} for i, value in enumerate(values)]


def two_sided(name: str, shift: float, least: float) -> tuple[Result, list[dict]]:
    """Like `scored`, of a latent model: at most as many nats per token more than `ar`, and at least so many more."""
    records = [{"block": r["block"], "tokens": 255, "elbo": r["exact"]} for r in scored(name, shift)[1]]
    for record in records:
        record["upper"] = record["elbo"] + 255 * (shift - least)
    made = make_result(name=name, nats=-sum(r["elbo"] for r in records) / 5100)
    (upper,) = [m for m in made.metrics if m.headline and m.name == "token_perplexity"]
    value = math.exp(-sum(r["upper"] for r in records) / 5100)
    bound: dict[str, Any] = {"likelihood": "upper", "headline": False, "kind": "upper_bound", "value": value}
    own = [m for m in made.metrics if m.likelihood == "elbo"]
    return dataclasses.replace(made, metrics=(*own, dataclasses.replace(upper, ci95=None, **bound))), records


def audit(of: Result, verdicts: dict[str, bool], *, claimed: float = 2.4, source: float = 2.3, n: int = 256) -> Result:
    """An audit result of the model of another result."""

    def metric(name: str, likelihood: str | None, value: float, headline: bool = False) -> Metric:
        return Metric(
            name=name, likelihood=likelihood, headline=headline, unit="nats", value=value, kind="exact", n=n,
            direction="higher",
        )  # fmt: skip

    metrics = []
    for i, (likelihood, passed) in enumerate(verdicts.items()):
        metrics.append(metric("audit_passed", likelihood, float(passed), headline=i == 0))
        metrics.append(metric("audit_log_e_value", likelihood, -10.0 if passed else 500.0))
        metrics.append(metric("audit_claimed_nats_per_token", likelihood, claimed if passed else source - 0.1))
        metrics.append(metric("audit_total_mass", likelihood, 0.9))
    metrics.append(metric("audit_source_nats_per_token", None, source))
    metrics.append(metric("audit_source_entropy_per_token", None, source - 0.01))
    return dataclasses.replace(
        of,
        task={"name": "ltm_audit", "version": 1.0, "split": "test"},
        data={**of.data, "corpus": "topics", "fingerprint": "7" * 64},
        metrics=tuple(metrics),
    )


def build(directory: Path, *results: Result) -> Board:
    """Write the results, and return their board."""
    for result in results:
        write_result(result, directory)
    return board(load(directory))


def rows_of(part: Part) -> tuple[tuple[str | Value, ...], ...]:
    assert part.table is not None
    return part.table.rows
