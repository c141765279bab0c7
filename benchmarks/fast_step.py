"""Measure the time of one fast step: `python -m benchmarks.fast_step`.

Compares, in one process and on the same random text, a plain loop (autocast, gradients for all weights, all logits at
once) with the library's. Both do the published work of a step: forward, backward to z, Adam on mu and log sigma^2.
Shapes: B texts, L tokens, D width, V vocabulary.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from ltm.devices import device_name
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import PosteriorConfig
from ltm.registry import preset
from ltm.rng import SequenceRng


def plain_step_seconds(
    model: LatentThoughtModel, tokens_BL: torch.Tensor, steps: int, dtype: torch.dtype | None
) -> float:
    """Return seconds per step of a straightforward loop."""
    stack, shape = model.decoder, (len(tokens_BL), *model.latent_shape)
    mean = torch.zeros(shape, device=tokens_BL.device, requires_grad=True)
    log_variance = torch.zeros(shape, device=tokens_BL.device, requires_grad=True)
    adam = torch.optim.Adam([mean, log_variance], lr=0.3)
    inputs_BL = stack.with_bos(tokens_BL)
    began = _now(tokens_BL.device)
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
    return (_now(tokens_BL.device) - began) / steps


def library_step_seconds(model: LatentThoughtModel, tokens_BL: torch.Tensor, steps: int) -> float:
    """Return seconds per step of `LatentThoughtModel.infer`, with its preparation divided among the steps."""
    began = _now(tokens_BL.device)
    model.infer(tokens_BL, SequenceRng(0, range(len(tokens_BL))), config=PosteriorConfig(steps=steps))
    return (_now(tokens_BL.device) - began) / steps


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main() -> None:
    """Time the loops and print the table."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.fast_step", description=__doc__)
    p.add_argument("--model", default="ltm-small")
    p.add_argument("--batch", type=int, default=2)
    p.add_argument("--vocab-size", type=int, default=50258)
    p.add_argument("--steps", type=int, default=4, help="fast steps per repetition; default: 4")
    p.add_argument("--repeats", type=int, default=3, help="repetitions, interleaved; the median is shown; default: 3")
    p.add_argument("--device", default="cpu")
    p.add_argument("--float32", action="store_true", help="also time the plain loop in float32")
    options = p.parse_args()
    cls, chosen = preset(options.model)
    if cls is not LatentThoughtModel:
        p.error(f"{options.model} has no fast loop; expected an ltm preset")
    torch.manual_seed(0)
    model = LatentThoughtModel(dataclasses.replace(chosen.config, vocab_size=options.vocab_size)).to(options.device)
    tokens_BL = torch.randint(options.vocab_size - 1, (options.batch, model.block_length)).to(options.device)
    loops = {
        "plain, bfloat16 autocast": lambda n: plain_step_seconds(model, tokens_BL, n, torch.bfloat16),
        "library": lambda n: library_step_seconds(model, tokens_BL, n),
    }
    if options.float32:
        loops = {"plain, float32": lambda n: plain_step_seconds(model, tokens_BL, n, None), **loops}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for repeat in range(options.repeats + 1):
        for name, loop in loops.items():
            measured = loop(options.steps if repeat else 1)
            if repeat:  # the first round warms up
                seconds[name].append(measured)
    shape = f"{options.model}, B={options.batch}, N={model.block_length + 1}, V={options.vocab_size}"
    table = Table(title=f"One fast step, {shape}, {device_name(tokens_BL.device)}")
    for column in ("loop", "seconds per step", "tokens/s", "speed-up"):
        table.add_column(column, justify="left" if column == "loop" else "right")
    base = statistics.median(seconds["plain, bfloat16 autocast"])
    for name, measures in seconds.items():
        median = statistics.median(measures)
        table.add_row(name, f"{median:.3f}", f"{tokens_BL.numel() / median:,.0f}", f"{base / median:.2f}x")
    Console().print(table)


if __name__ == "__main__":
    main()
