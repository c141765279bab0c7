"""Measure one training update: `python -m benchmarks.training_step`.

Compares, in one process, in turn and on the same random tokens, the update of `ltm-train` for a preset of the family
`ar` with a plain nanoGPT-style loop of the same shape and dtype (`plain_gpt.py`). Ours also keeps the moving average
that is scored, checks that its numbers are finite, and sums up its log. The plain network is timed twice: with the
same window, which torch takes as a mask, and attending to the whole past, for which it needs none.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from baselines.ar import Autoregressive
from benchmarks.fast_step import now
from benchmarks.machine import GPT2_SIZE, VOCAB_SIZE, SameBatch, machine
from benchmarks.plain_gpt import PlainGPT, optimizer_of, plain_update
from ltm import registry
from ltm.config import from_dict
from ltm.devices import choose_device, device_name, threads_for
from ltm.errors import UserError, run_command
from ltm.files import write_atomically
from ltm.nn.transformer import set_matmul_dtype
from ltm.training.config import TrainConfig
from ltm.training.loop import settle, update
from ltm.training.state import Run

OURS = "ltm-train"


def loops(
    model: Autoregressive, recipe: TrainConfig, tokens_BL: Tensor, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """Return what takes one update, by name, each with weights of its own that begin as the model's.

    Args:
        dtype: of matrix products.
    """
    shape, parameters = model.config.decoder, model.decoder.embedding
    found: dict[str, Callable[[], object]] = {}
    for name, window in ((f"plain, window {shape.window}", shape.window), ("plain, whole past", None)):
        network = PlainGPT(dataclasses.replace(shape, window=window), model.vocab_size, parameters.dtype)
        network.to(parameters.device).load_state_dict(model.decoder.state_dict())
        optimizer = optimizer_of(
            network, lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), weight_decay=recipe.weight_decay
        )
        found[name] = lambda network=network, optimizer=optimizer: plain_update(  # type: ignore[misc]
            network, optimizer, tokens_BL, clip=recipe.clip, dtype=dtype
        )
    set_matmul_dtype(model, dtype)
    run, data = Run.new(model, recipe), SameBatch(tokens_BL)
    found[OURS] = lambda: update(run, data, recipe, progress=0.5, lr=recipe.lr)  # type: ignore[arg-type]
    return found


def measured(
    loops: dict[str, Callable[[], object]], device: torch.device, *, seconds: float, at_least: int = 3
) -> dict[str, float]:
    """Return the median seconds of each loop's update, over rounds in which each has its turn, after one to warm up."""
    found: dict[str, list[float]] = {name: [] for name in loops}
    began, rounds = now(device), 0
    while rounds <= at_least or now(device) - began < seconds:
        for name, loop in loops.items():
            start = now(device)
            loop()
            if rounds:
                found[name].append(now(device) - start)
        rounds += 1
    return {name: statistics.median(times) for name, times in found.items()}


def main() -> None:
    """Time the updates, print the table and, if asked, write the results as JSON."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__)
    p.add_argument("--preset", default="ar-tiny")
    p.add_argument("--batch", type=int, help="texts of an update; default: 4")
    p.add_argument("--seconds", type=float, default=60.0, help="how long to measure; default: 60")
    p.add_argument("--device", default="cpu")
    p.add_argument("--json", metavar="FILE", type=Path, help="also write the results to this file")
    options = p.parse_args()
    cls, preset = registry.preset(options.preset)
    if cls is not Autoregressive:
        raise UserError(f"{options.preset} is not a plain GPT; expected a preset of the family ar")
    torch.manual_seed(0)
    vocab_size = GPT2_SIZE if preset.tokenizer == "gpt2" else VOCAB_SIZE
    model = Autoregressive(dataclasses.replace(preset.config, vocab_size=vocab_size)).to(choose_device(options.device))
    recipe, _ = settle(model, from_dict(TrainConfig, preset.training), {})
    recipe = dataclasses.replace(recipe, batch=options.batch or 4, accumulation=1)
    tokens_BL = torch.randint(vocab_size - 1, (recipe.batch, model.block_length)).to(model.device)
    with threads_for(tokens_BL.numel() * model.config.decoder.width) as threads:
        compared = loops(model, recipe, tokens_BL, getattr(torch, recipe.matmul))
        seconds = measured(compared, model.device, seconds=options.seconds)
        where = device_name(model.device)
    rows = [
        {"loop": name, "seconds": each, "tokens_per_second": tokens_BL.numel() / each} for name, each in seconds.items()
    ]
    settings = {"preset": options.preset, "batch": recipe.batch, "tokens": tokens_BL.numel(), "dtype": recipe.matmul}
    results = {"machine": machine(), "settings": {**settings, "threads": threads, "device": where}, "rows": rows}
    show(results)
    if options.json:
        write_atomically(options.json, (json.dumps(results, indent=1) + "\n").encode())
        print(f"written to {options.json}")


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    settings = results["settings"]
    what = f"One update of {settings['preset']}, {settings['tokens']:,} tokens, {settings['dtype']}"
    table = Table(title=f"{what}, {settings['device']}, torch {results['machine']['torch']}")
    for column in ("loop", "seconds per update", "tokens/s", "ours by comparison"):
        table.add_column(column, justify="left" if column == "loop" else "right")
    ours = next(row["seconds"] for row in results["rows"] if row["loop"] == OURS)
    for row in results["rows"]:
        times = "" if row["loop"] == OURS else f"{row['seconds'] / ours:.2f}x"
        table.add_row(row["loop"], f"{row['seconds']:.4f}", f"{row['tokens_per_second']:,.0f}", times)
    Console(width=100).print(table)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
