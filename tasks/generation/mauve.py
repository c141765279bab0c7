"""MAUVE between two sets of texts under any of our models, with the spread over k-means seeds.

The divergence is the mauve-text package's, with its published defaults. It gets features, never text, so it downloads
nothing and chooses no featuriser. It is optional: `pip install 'latent-thought-bench[mauve]'`.
Shapes: N texts, D features per text.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from ltm import statistics
from ltm.errors import UserError
from tasks.generation.metrics import metric
from tasks.models import label

if TYPE_CHECKING:
    from ltm.harness import HarnessModel
    from ltm.result import Metric

LEAST_TEXTS = 500
"""The least number of texts on each side."""
KMEANS_SEEDS = 5
"""Seeds of k-means over which MAUVE is averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mauve:
    """MAUVE over k-means seeds: mean and standard deviation; `star` is the mean of its smoothed variant, MAUVE*."""

    mean: float
    sd: float
    star: float


def check_available() -> None:
    """Raise UserError if the package is not installed."""
    if find_spec("mauve") is None:
        raise UserError("MAUVE needs the mauve-text package: pip install 'latent-thought-bench[mauve]'")


def check_size(texts: int) -> None:
    """Raise UserError if there are too few texts for MAUVE; small sets look alike whatever they are."""
    if texts < LEAST_TEXTS:
        raise UserError(
            f"MAUVE needs at least {LEAST_TEXTS} texts on each side, found {texts}: --samples {LEAST_TEXTS}"
        )


def compare(
    featuriser: HarnessModel,
    written: Sequence[tuple[str, str]],
    human: Sequence[tuple[str, str]],
    reference: Sequence[str],
) -> list[Metric]:
    """Measure MAUVE against human reference texts: of the model, other human texts (a ceiling), and shuffled ones."""
    ceiling = ["".join(pair) for pair in human]
    sets = {
        "": ["".join(pair) for pair in written],
        "human_": ceiling,
        "shuffled_": [shuffled_words(text, n) for n, text in enumerate(ceiling)],
    }
    p_ND, metrics = features(featuriser, reference), []
    for compared, texts in sets.items():
        q_ND = features(featuriser, texts)
        metrics += mauve_metrics(mauve(p_ND, q_ND), label(featuriser), min(len(p_ND), len(q_ND)), compared=compared)
    return metrics


def features(featuriser: HarnessModel, texts: Sequence[str]) -> np.ndarray:
    """Compute features of each non-empty text, (N, D) float32; of a long text only the first block is read.

    Raises:
        UserError: the featuriser's family has no features.
    """
    import torch

    from ltm.evaluation.rows import padded

    model = featuriser.loaded.model
    streams = [ids[: model.block_length] for ids in featuriser.loaded.tokenizer.encode_batch(texts) if len(ids)]
    order = sorted(range(len(streams)), key=lambda n: -len(streams[n]))
    rows: dict[int, np.ndarray] = {}

    @torch.no_grad()
    def compute(batch: Sequence[int]) -> np.ndarray:
        lengths = torch.tensor([len(streams[n]) for n in batch])
        tokens_BL = padded([streams[n] for n in batch])
        return model.features(tokens_BL.to(model.device), lengths.to(model.device)).float().cpu().numpy()

    for batch, features_BD in featuriser.runner.scorer.in_batches(order, compute):
        rows |= zip(batch, features_BD, strict=True)
    return np.stack([rows[n] for n in range(len(streams))])


def mauve(p_ND: np.ndarray, q_ND: np.ndarray) -> Mauve:
    """Return MAUVE of two sets of features, from nearly 0 (nothing in common) to 1; deterministic."""
    with _quiet_native_code():
        from mauve import compute_mauve

        runs = [
            compute_mauve(p_features=p_ND, q_features=q_ND, seed=seed, verbose=False) for seed in range(KMEANS_SEEDS)
        ]
    values = np.array([run.mauve for run in runs])
    return Mauve(
        mean=float(values.mean()),
        sd=float(values.std(ddof=1)),
        star=float(np.mean([run.mauve_star for run in runs])),
    )


def mauve_metrics(measured: Mauve, featuriser: str, n: int, *, compared: str = "") -> list[Metric]:
    """Make metrics of MAUVE, its spread over k-means seeds, and MAUVE*; `compared` is a prefix such as `human_`."""
    rest: dict[str, Any] = {"unit": "set", "n": n}
    mean = statistics.Measured(measured.mean, measured.sd / math.sqrt(KMEANS_SEEDS), None, None, "")
    sd, star = (statistics.Measured(value, None, None, None, "") for value in (measured.sd, measured.star))
    return [
        metric(f"{compared}mauve[{featuriser}]", mean, "higher", headline=not compared, **rest),
        metric(f"{compared}mauve_kmeans_sd[{featuriser}]", sd, "lower", **rest),
        metric(f"{compared}mauve_star[{featuriser}]", star, "higher", **rest),
    ]


def shuffled_words(text: str, index: int) -> str:
    """Return the text with its words in a random order that `index` seeds, and its white space unchanged."""
    from ltm.rng import seed_of

    parts = re.split(r"(\s+)", text)
    words = [place for place, part in enumerate(parts) if part.strip()]
    order = np.random.default_rng(seed_of("shuffled words", index)).permutation(len(words))
    mixed = list(parts)
    for place, drawn in zip(words, order, strict=True):
        mixed[place] = parts[words[drawn]]
    return "".join(mixed)


@contextmanager
def _quiet_native_code() -> Iterator[None]:
    """Silence k-means, which warns from C++ that clusters of ten points are small; these are the published settings."""
    sys.stderr.flush()
    kept, sink = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(sink, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(sink)
