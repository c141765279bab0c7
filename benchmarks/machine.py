"""Speed of this machine: matrix rate by dtype, the fast step, tokens/s of training and scoring the tiny presets.

Everything runs on random tokens and untrained weights, since speed does not depend on what a model has learned.
"""

from __future__ import annotations

import dataclasses
import platform
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.fast_step import gpu_peak, library_step_seconds, matrix_rate, now, plain_step_seconds
from ltm import registry
from ltm.api import LanguageModel
from ltm.config import from_dict
from ltm.devices import processor, threads_for
from ltm.latent.model import LatentThoughtModel
from ltm.nn.transformer import Stack, set_matmul_dtype
from ltm.rng import SequenceRng
from ltm.training.config import TrainConfig
from ltm.training.loop import settle, update
from ltm.training.state import Run

VOCAB_SIZE = 2049
GPT2_SIZE = 50258
FAST_STEP = "ltm-small"


class SameBatch:
    """Stands in for a corpus: the same random tokens again and again."""

    def __init__(self, tokens_BL: Tensor):
        self.tokens_BL = tokens_BL

    def batch(self, first: int, count: int, *, seed: int) -> tuple[Tensor, list[int]]:
        """See `ltm.data.token_dataset.TokenDataset.batch`."""
        return self.tokens_BL, list(range(first, first + count))


def machine() -> dict[str, Any]:
    """Return the processor, its capability, threads, and versions."""
    return {
        "processor": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def matrix_rates(device: str = "cpu") -> dict[str, dict[str, float]]:
    """Return GFLOP/s of one product, by dtype and number of threads: one and all, or `GPU`."""
    if device != "cpu":
        return {dtype: {"GPU": matrix_rate(getattr(torch, dtype), device) / 1e9} for dtype in ("float32", "bfloat16")}
    threads, rates = torch.get_num_threads(), {}
    for dtype in (torch.float32, torch.bfloat16):
        of_dtype = {}
        for count in dict.fromkeys((1, threads)):
            torch.set_num_threads(count)
            of_dtype[str(count)] = matrix_rate(dtype) / 1e9
        rates[str(dtype).removeprefix("torch.")] = of_dtype
    torch.set_num_threads(threads)
    return rates


def fast_step(*, batch: int = 1, length: int = 512, steps: int = 2) -> dict[str, Any]:
    """Return seconds per fast step of `ltm-small`, in the dtype that `auto` chooses: a plain loop and the library's."""
    _, chosen = registry.preset(FAST_STEP)
    torch.manual_seed(0)
    model = LatentThoughtModel(dataclasses.replace(chosen.config, vocab_size=GPT2_SIZE))
    tokens_BL = torch.randint(GPT2_SIZE - 1, (batch, length))
    dtype = model.decoder.matmul_dtype("auto")
    autocast = dtype if dtype == torch.bfloat16 else None
    plain = min(plain_step_seconds(model, tokens_BL, steps, autocast) for _ in range(2))
    library = min(library_step_seconds(model, tokens_BL, steps) for _ in range(2))
    return {
        "model": FAST_STEP,
        "texts": batch,
        "length": length,
        "dtype": str(dtype).removeprefix("torch."),
        "plain_seconds": plain,
        "library_seconds": library,
        "speed_up": plain / library,
    }


def tiny_presets() -> list[str]:
    """Return the presets that train themselves, without those that count."""
    presets = {name: registry.preset(name) for name in registry.preset_names()}
    return [name for name, (cls, preset) in presets.items() if preset.trains_itself and not cls.learns_by_counting]


def preset_speed(
    name: str, rates: dict[str, dict[str, float]], *, seconds: float, device: str = "cpu", batch: int | None = None
) -> dict[str, Any]:
    """Return tokens/s of training and of scoring by the headline, each one's share of the matrix rate, a GPU's memory.

    Args:
        rates: of `matrix_rates`.
        batch: texts of a batch; None for the recipe's.
    """
    cls, preset = registry.preset(name)
    recipe = from_dict(TrainConfig, preset.training)
    torch.manual_seed(0)
    vocab_size = GPT2_SIZE if preset.tokenizer == "gpt2" else VOCAB_SIZE
    model: LanguageModel = cls(dataclasses.replace(preset.config, vocab_size=vocab_size)).to(device)
    cost, length = model.cost(model.block_length), model.block_length
    recipe, model.config = settle(model, recipe, {})
    dtype = getattr(torch, recipe.matmul)
    tokens_BL = torch.randint(vocab_size - 1, (batch or recipe.batch, length)).to(device)
    run = Run.new(model, dataclasses.replace(recipe, batch=len(tokens_BL), accumulation=1))
    width = next(module.config.width for module in model.modules() if isinstance(module, Stack))

    def train() -> int:
        update(
            run,
            SameBatch(tokens_BL),
            dataclasses.replace(recipe, batch=len(tokens_BL), accumulation=1),
            progress=0.5,
            lr=recipe.lr,
        )
        return tokens_BL.numel()

    def score() -> int:
        model.log_likelihood(tokens_BL, rng=SequenceRng(0, range(len(tokens_BL))))
        return tokens_BL.numel()

    peaks = {}
    with threads_for(tokens_BL.numel() * width) as threads:
        set_matmul_dtype(model, dtype)
        trained = _rate(train, seconds, tokens_BL.device)
        if tokens_BL.is_cuda:
            peaks["training_mib"] = gpu_peak(train)
        set_matmul_dtype(model, None)
        model.eval()
        with torch.no_grad():
            scored = _rate(score, seconds, tokens_BL.device)
            if tokens_BL.is_cuda:
                peaks["scoring_mib"] = gpu_peak(score)
    of_dtype = rates[recipe.matmul]
    rate = of_dtype.get(str(threads), max(of_dtype.values())) * 1e9
    return {
        "preset": name,
        "batch": len(tokens_BL),
        "dtype": recipe.matmul,
        "threads": threads,
        "training_tokens_per_second": trained,
        "training_share_of_matrix_rate": trained * cost.train_flops_per_token / rate,
        "scoring_tokens_per_second": scored,
        "scoring_share_of_matrix_rate": scored * cost.score_flops_per_token / rate,
        **peaks,
    }


def _rate(work: Callable[[], int], seconds: float, device: torch.device) -> float:
    """Return tokens/s: the median over calls for about `seconds`, after one to warm up."""
    work()
    speeds: list[float] = []
    began = now(device)
    while len(speeds) < 2 or now(device) - began < seconds:
        start = now(device)
        tokens = work()
        speeds.append(tokens / (now(device) - start))
    return statistics.median(speeds)
