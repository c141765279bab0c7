"""`python -m benchmarks`: measure the speed of this machine, in at most three minutes; or of a GPU."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ltm.errors import run_command

SECONDS_PER_MEASUREMENT = 3.0


def main() -> None:
    """Measure, print the tables and, if asked, write the results as JSON."""
    p = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    p.add_argument("--json", metavar="FILE", type=Path, help="also write all results to this file")
    p.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N; default: cpu")
    p.add_argument(
        "--presets", nargs="+", metavar="NAME", help="default: the tiny ones, on a GPU ltm-small and ltm-large"
    )
    p.add_argument(
        "--batch", type=int, nargs="+", help="texts of a batch, one number or one a preset; default: the recipe's"
    )
    options = p.parse_args()

    from benchmarks import machine
    from ltm.devices import choose_device, device_name
    from ltm.files import write_atomically
    from ltm.progress import say

    facts = machine.machine()
    say(f"{facts['processor']} ({facts['capability']}), {facts['threads']} threads, torch {facts['torch']}")
    say("matrix products ...")
    device, on_cpu = choose_device(options.device), options.device == "cpu"
    rates = machine.matrix_rates(device)
    results: dict[str, Any] = {"machine": {**facts, "device": device_name(device)}, "matrix_gflops": rates}
    if on_cpu:
        say(f"the fast step of {machine.FAST_STEP} ...")
        results["fast_step"] = machine.fast_step()
    presets = options.presets or (machine.tiny_presets() if on_cpu else [machine.FAST_STEP, "ltm-large"])
    batches = options.batch or [None]
    speeds: list[dict[str, Any]] = []
    for name, batch in zip(presets, batches * len(presets) if len(batches) == 1 else batches, strict=True):
        say(f"{name} ...")
        speeds.append(machine.preset_speed(name, rates, seconds=SECONDS_PER_MEASUREMENT, device=device, batch=batch))
    results["presets"] = speeds
    show(results)
    if options.json:
        write_atomically(options.json, (json.dumps(results, indent=1) + "\n").encode())
        print(f"written to {options.json}")


def show(results: dict[str, Any]) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.table import Table

    facts, step = results["machine"], results.get("fast_step")
    console = Console(width=100)
    rates = Table(title=f"GFLOP/s of matrix products, {facts['device']}, torch {facts['torch']}")
    counts = list(next(iter(results["matrix_gflops"].values())))
    for column in (
        "dtype",
        *(count if count == "GPU" else f"{count} thread{'s' * (count != '1')}" for count in counts),
    ):
        rates.add_column(column, justify="left" if column == "dtype" else "right")
    for dtype, of_dtype in results["matrix_gflops"].items():
        rates.add_row(dtype, *(f"{rate:,.1f}" for rate in of_dtype.values()))
    console.print(rates)
    if step:
        console.print(
            f"One fast step of {step['model']} ({step['texts']} x {step['length']} tokens, {step['dtype']}):\n"
            f"plain {step['plain_seconds']:.3f} s, library {step['library_seconds']:.3f} s, "
            f"{step['speed_up']:.2f} x as fast\n"
        )
    table = Table(title="Presets: tokens/s, share of the matrix rate, and memory beyond the model's, MiB")
    memory = "training_mib" in results["presets"][0]
    for column in (
        "preset",
        "dtype",
        "batch",
        "training",
        "share",
        *["MiB"] * memory,
        "scoring",
        "share",
        *["MiB"] * memory,
    ):
        table.add_column(column, justify="left" if column in ("preset", "dtype") else "right")
    for row in results["presets"]:
        table.add_row(
            row["preset"],
            row["dtype"],
            str(row["batch"]),
            f"{row['training_tokens_per_second']:,.0f}",
            f"{row['training_share_of_matrix_rate']:.0%}",
            *([f"{row['training_mib']:,.0f}"] if memory else []),
            f"{row['scoring_tokens_per_second']:,.0f}",
            f"{row['scoring_share_of_matrix_rate']:.0%}",
            *([f"{row['scoring_mib']:,.0f}"] if memory else []),
        )
    console.print(table)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
