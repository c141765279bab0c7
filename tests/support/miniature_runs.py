"""For the tests of training and checkpoints: a little text, a dataset of it, and models that train in moments."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ltm import registry
from ltm.api import LanguageModel
from ltm.data.split import Split
from ltm.data.token_dataset import TokenDataset
from ltm.tokenizer import Tokenizer, build
from ltm.training import checkpoint
from ltm.training.config import TrainConfig
from ltm.training.loop import train

L = 8
RECIPE = TrainConfig(budget="tokens=512", batch=4, accumulation=2, lr=1e-2, warmup=0.25, ema=0.9, matmul="float32")
"""Eight updates of two batches of four blocks."""


def text(lines: int, *, seed: int = 0) -> list[str]:
    """Lines of a few words that repeat, each with its line end."""
    choose = random.Random(seed)
    words = ("the", "thought", "of", "a", "model", "is", "latent", "and", "so", "on")
    return [" ".join(choose.choices(words, k=9)) + ".\n" for _ in range(lines)]


def tokenizer() -> Tokenizer:
    return build("bytes")


def dataset(cache: Path, *, lines: int = 5) -> TokenDataset:
    """Some thirty blocks of bytes: eight updates of `RECIPE` pass through them more than twice."""
    split = Split.of("toy", "train", text(lines), unit="line", source={"kind": "test"})
    return TokenDataset.build(split, tokenizer(), block_length=L, eos_between_documents=False, cache_dir=cache)


def model(family: str, *, seed: int = 0, **changes: Any) -> LanguageModel:
    """A fresh miniature for bytes."""
    cls = registry.model_family(family)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return cls(dataclasses.replace(cls.miniature(258, L), **changes))


def run(
    family: str,
    directory: Path,
    cache: Path,
    config: TrainConfig = RECIPE,
    *,
    report: Callable[..., None] = lambda *_: None,
    untrained: LanguageModel | None = None,
    **provenance: Any,
) -> Path:
    """Train a miniature in `directory`, or go on there."""
    return train(
        f"{family}-mini",
        untrained or model(family),
        dataset(cache),
        tokenizer(),
        config,
        directory,
        provenance={"corpus": "toy", **provenance},
        report=report,
    )


def log(directory: Path) -> list[dict[str, float]]:
    """The training log without wall time, which no two runs share."""
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def save(directory: Path, step: int, *, complete: bool = False, keep: int = 2, **changes: Any) -> Path:
    """A checkpoint of an untrained model, of weights that all equal `step`."""
    untrained = model("ar")
    filled: dict[str, Tensor] = {name: torch.full_like(p, step) for name, p in untrained.state_dict().items()}
    options: dict[str, Any] = {
        "name": "ar-mini",
        "model": untrained,
        "tokenizer": tokenizer(),
        "weights": filled,
        "state": {} if complete else {"run": torch.tensor([step, 0.0])},
        "training": {"complete": complete, "steps": step, "corpus": "toy"},
        "keep": keep,
    }
    return checkpoint.save(directory, step, **options | changes)
