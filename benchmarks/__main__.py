"""`python -m benchmarks`: measure the speed of this machine, in at most three minutes."""

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
    options = p.parse_args()

    from benchmarks import machine
    from ltm.files import write_atomically
    from ltm.progress import say

    facts = machine.machine()
    say(f"{facts['processor']} ({facts['capability']}), {facts['threads']} threads, torch {facts['torch']}")
    say("matrix products ...")
    rates = machine.matrix_rates()
    say(f"the fast step of {machine.FAST_STEP} ...")
    step = machine.fast_step()
    speeds = []
    for name in machine.tiny_presets():
        say(f"{name} ...")
        speeds.append(machine.preset_speed(name, rates, seconds=SECONDS_PER_MEASUREMENT))
    results = {"machine": facts, "matrix_gflops": rates, "fast_step": step, "presets": speeds}
    show(results)
    if options.json:
        write_atomically(options.json, (json.dumps(results, indent=1) + "\n").encode())
        print(f"written to {options.json}")


def show(results: dict[str, Any]) -> None:
    """Print the tables."""
    from rich.console import Console
    from rich.table import Table

    facts, step = results["machine"], results["fast_step"]
    console = Console(width=100)
    rates = Table(title=f"GFLOP/s of matrix products, {facts['processor']}, {facts['capability']}")
    counts = list(next(iter(results["matrix_gflops"].values())))
    for column in ("dtype", *(f"{count} thread{'s' * (count != '1')}" for count in counts)):
        rates.add_column(column, justify="left" if column == "dtype" else "right")
    for dtype, of_dtype in results["matrix_gflops"].items():
        rates.add_row(dtype, *(f"{rate:,.1f}" for rate in of_dtype.values()))
    console.print(rates)
    console.print(
        f"One fast step of {step['model']} ({step['texts']} x {step['length']} tokens, {step['dtype']}): plain "
        f"{step['plain_seconds']:.3f} s, library {step['library_seconds']:.3f} s, {step['speed_up']:.2f} x as fast\n"
    )
    table = Table(title="Tiny presets: tokens/s and share of the matrix rate")
    for column in ("preset", "dtype", "threads", "training", "share", "scoring", "share"):
        table.add_column(column, justify="left" if column in ("preset", "dtype") else "right")
    for row in results["presets"]:
        table.add_row(
            row["preset"],
            row["dtype"],
            str(row["threads"]),
            f"{row['training_tokens_per_second']:,.0f}",
            f"{row['training_share_of_matrix_rate']:.0%}",
            f"{row['scoring_tokens_per_second']:,.0f}",
            f"{row['scoring_share_of_matrix_rate']:.0%}",
        )
    console.print(table)


if __name__ == "__main__":
    raise SystemExit(run_command(main))
