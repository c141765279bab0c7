"""Measure time and memory of one fast step: `python -m benchmarks.fast_step`.

Compares, on the same random text and in the same dtype, a plain loop (gradients for all weights, all logits at once,
autocast for bfloat16) with the library's. Both do the published work of a step: forward, backward to z, Adam on mu and
log sigma^2. Shapes: B texts, L tokens, D width, V vocabulary.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from ltm.devices import device_name, product_seconds
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import PosteriorConfig
from ltm.nn.flops import StackFlops
from ltm.registry import preset
from ltm.rng import SequenceRng

PRODUCT = (512, 512, 1376)
"""Rows, inputs and outputs of the product that measures a CPU's matrix rate: a SwiGLU of the published width."""

SQUARE = 8192
"""Rows and columns of the product that measures a GPU's: large enough that nothing else limits it."""


def plain_step_seconds(model: LatentThoughtModel, tokens_BL: Tensor, steps: int, dtype: torch.dtype | None) -> float:
    """Return seconds per step of a straightforward loop."""
    stack, shape = model.decoder, (len(tokens_BL), *model.latent_shape)
    mean = torch.zeros(shape, device=tokens_BL.device, requires_grad=True)
    log_variance = torch.zeros(shape, device=tokens_BL.device, requires_grad=True)
    adam = torch.optim.Adam([mean, log_variance], lr=0.3)
    inputs_BL = stack.with_bos(tokens_BL)
    began = now(tokens_BL.device)
    for _ in range(steps):
        adam.zero_grad()
        z = mean + (0.5 * log_variance).exp() * torch.randn(shape, device=tokens_BL.device)
        with torch.autocast(tokens_BL.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            stack.compute_dtype = dtype
            h_BLD = stack(inputs_BL, model.latent_keys_values(stack, z))
            logits_BLV = F.linear(h_BLD, stack.embedding)
        nll = F.cross_entropy(logits_BLV.flatten(0, 1).float(), tokens_BL.flatten(), reduction="sum")
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum()
        (nll + kl).backward()
        adam.step()
    stack.compute_dtype = None
    model.zero_grad(set_to_none=True)
    return (now(tokens_BL.device) - began) / steps


def library_step_seconds(
    model: LatentThoughtModel, tokens_BL: Tensor, steps: int, dtype: torch.dtype | None = None
) -> float:
    """Return seconds per step of `LatentThoughtModel.infer`, with its preparation divided among the steps."""
    config = PosteriorConfig(steps=steps) if dtype is None else PosteriorConfig(steps=steps, matmul=_setting(dtype))
    began = now(tokens_BL.device)
    model.infer(tokens_BL, SequenceRng(0, range(len(tokens_BL))), config=config)
    return (now(tokens_BL.device) - began) / steps


def _setting(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def now(device: torch.device) -> float:
    """Seconds, with everything done that the device was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is timed: a preset with random weights on `batch` random full texts, and the dtype of matrix products."""

    model: str
    batch: int
    vocab_size: int
    device: str
    dtype: torch.dtype

    def build(self) -> tuple[LatentThoughtModel, Tensor]:
        """The model and its texts, (B, L)."""
        _, chosen = preset(self.model)
        torch.manual_seed(0)
        model = LatentThoughtModel(dataclasses.replace(chosen.config, vocab_size=self.vocab_size)).to(self.device)
        return model, torch.randint(self.vocab_size - 1, (self.batch, model.block_length)).to(self.device)

    def loops(self, model: LatentThoughtModel, tokens_BL: Tensor) -> dict[str, Callable[[int], float]]:
        """Seconds per step of each loop, by name, for a number of steps."""
        narrow = None if self.dtype == torch.float32 else self.dtype
        return {
            "plain": lambda steps: plain_step_seconds(model, tokens_BL, steps, narrow),
            "library": lambda steps: library_step_seconds(model, tokens_BL, steps, self.dtype),
        }


def gpu_peak(work: Callable[[], object]) -> float:
    """MiB of the GPU's memory that work adds to what is in use."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def _peak(case: Case, loop: str) -> float:
    """MiB that one step adds to the process."""
    run = case.loops(*case.build())[loop]
    unit = 1 if sys.platform == "darwin" else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(1)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit / 2**20


def peak_memory(case: Case, loop: str) -> float:
    """MiB that one step of a loop needs beyond the model, measured in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (case, loop))


def matrix_rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """FLOP/s of a matrix product, on all threads or on a GPU."""
    if device != "cpu":
        left, right = (torch.randn(SQUARE, SQUARE, device=device).to(dtype) for _ in range(2))
        seconds = []
        for _ in range(8):
            began = now(left.device)
            for _ in range(4):
                left @ right
            seconds.append((now(left.device) - began) / 4)
        return 2 * SQUARE**3 / statistics.median(seconds[2:])
    return 2 * math.prod(PRODUCT) / product_seconds(dtype, *PRODUCT, repeats=10)


def measured(case: Case, *, steps: int, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds per step, tokens/s, share of the matrix rate and peak memory of each loop; medians of repetitions."""
    peaks = {}
    if case.device == "cpu":  # first: a new process inherits the highest mark of the one that starts it
        peaks = {name: peak_memory(case, name) for name in ("plain", "library")}
    model, tokens_BL = case.build()
    loops = case.loops(model, tokens_BL)
    stack = StackFlops.of(model.config.decoder, model.vocab_size - 1, tokens_BL.shape[1], model.latent_shape[1])
    flops = {"plain": 3 * stack.forward, "library": stack.latent_gradient + stack.first_attention / steps}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    rates: list[float] = []
    for repeat in range(repeats + 1):
        for name, loop in loops.items():
            taken = loop(steps if repeat else 1)
            if repeat:  # the first round warms up
                seconds[name].append(taken)
        rates.append(matrix_rate(case.dtype, case.device))
    if case.device != "cpu":
        peaks = {name: gpu_peak(lambda loop=loop: loop(1)) for name, loop in loops.items()}  # type: ignore[misc]
    found = {}
    for name, each in seconds.items():
        median = statistics.median(each)
        work = flops[name] * tokens_BL.numel()
        found[name] = {
            "seconds": median,
            "tokens_per_second": tokens_BL.numel() / median,
            "share_of_matrix_rate": work / median / statistics.median(rates),
            "peak_mib": peaks[name],
        }
    return found


def main() -> None:
    """Time the loops and print the table."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.fast_step", description=__doc__)
    p.add_argument("--model", default="ltm-small")
    p.add_argument("--batch", type=int, default=2)
    p.add_argument("--vocab-size", type=int, default=50258)
    p.add_argument("--steps", type=int, default=4, help="fast steps per repetition; default: 4")
    p.add_argument("--repeats", type=int, default=3, help="repetitions, interleaved; the median is shown; default: 3")
    p.add_argument("--device", default="cpu")
    p.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="default: the fastest here")
    options = p.parse_args()
    cls, chosen = preset(options.model)
    if cls is not LatentThoughtModel:
        p.error(f"{options.model} has no fast loop; expected an ltm preset")
    decoder = LatentThoughtModel(dataclasses.replace(chosen.config, vocab_size=3)).to(options.device).decoder
    case = Case(
        model=options.model,
        batch=options.batch,
        vocab_size=options.vocab_size,
        device=options.device,
        dtype=decoder.matmul_dtype(options.dtype),
    )
    found = measured(case, steps=options.steps, repeats=options.repeats)
    length = chosen.config.decoder.max_length
    table = Table(
        title=f"One fast step, {case.model}, B={case.batch}, N={length}, V={case.vocab_size}, {_setting(case.dtype)}, "
        f"{device_name(torch.device(case.device))}"
    )
    for column in ("Loop", "Seconds", "Tokens/s", "Speed-up", "Of the matrix rate", "Peak memory, MiB"):
        table.add_column(column, justify="left" if column == "Loop" else "right")
    for name, of_loop in found.items():
        table.add_row(
            name,
            f"{of_loop['seconds']:.3f}",
            f"{of_loop['tokens_per_second']:,.0f}",
            f"{found['plain']['seconds'] / of_loop['seconds']:.2f}x",
            f"{of_loop['share_of_matrix_rate']:.0%}",
            f"{of_loop['peak_mib']:,.0f}",
        )
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
