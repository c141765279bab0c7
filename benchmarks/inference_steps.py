"""Measure how tight a bound each way of fitting q(z|x) gives for its cost: `python -m benchmarks.inference_steps`.

Takes trained Latent Thought Models, such as those that `benchmarks.latent_use` and `benchmarks.latent_gain` leave, and
fits q to held-out blocks by every method of `posterior_methods` in several numbers of steps. Bounds are valid ones, on
fresh noise that is the same for all methods; costs are executed FLOPs. Starts other than the prior, and step sizes, are
learned from blocks of the training split.

Each measured fit is a line of `results.jsonl`; the same command continues where it was stopped. Shapes: N blocks.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.gain_report import NO_FIGURE, difference
from benchmarks.latent_gain import kept
from benchmarks.latent_use import spread_blocks
from benchmarks.posterior_methods import METHODS, Method, Natural, Start, mean_start
from ltm.api import LoadedModel
from ltm.config import digest
from ltm.errors import UserError, run_command
from ltm.latent.model import LatentThoughtModel
from ltm.latent.posterior import Posterior
from ltm.rng import SequenceRng
from ltm.training import checkpoint, log
from tasks.diagnostics import measures

STEPS = (2, 4, 8, 16)
REFERENCE, REFERENCE_STEPS = next(iter(METHODS)), 64
"""What the others are compared with: Algorithm 1 at many steps."""
DRAWS, IMPORTANCE_DRAWS, BATCH = 8, 16, 16
FROM_THE_MEAN = "natural, 0.3, from the mean q"
LEARNED = "natural, learned steps"
GRID = tuple(itertools.product((0.1, 0.2, 0.3, 0.5, 0.7, 1.0), (0.05, 0.1, 0.2, 0.4)))
"""Step sizes of mean and precision to choose from."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A model and the blocks that its q is fitted to."""

    loaded: LoadedModel
    tokens_NL: Tensor
    matmul: str

    @property
    def model(self) -> LatentThoughtModel:
        """The model."""
        assert isinstance(self.loaded.model, LatentThoughtModel)
        return self.loaded.model

    def fits(self, method: Method, steps: int, start: Start | None = None) -> list[Posterior]:
        """q of each batch of blocks."""
        model, found = self.model, []
        for tokens_BL, rng in measures.batches(self.tokens_NL, SequenceRng(0, range(len(self.tokens_NL))), BATCH):
            prior = Posterior.prior(len(tokens_BL), model.latent_shape, like=model.decoder.embedding)
            first = start(len(tokens_BL)) if start else prior
            gradient = model.likelihood_gradient(tokens_BL, None, matmul=self.matmul)
            with torch.no_grad():
                found.append(method(gradient, first, model.latent_shape, rng, steps))
        return found

    def scored(self, method: Method, steps: int, start: Start | None = None) -> dict[str, Any]:
        """Bounds of each block, KL per block, and FLOPs per token of the fit and of the ELBO."""
        fits, model = iter(self.fits(method, steps, start)), self.model
        nats: dict[str, list[float]] = {"elbo": [], "importance_bound": []}
        kl = []
        for tokens_BL, rng in measures.batches(self.tokens_NL, SequenceRng(1, range(len(self.tokens_NL))), BATCH):
            q = next(fits)
            pair = measures.point(
                model, tokens_BL, rng, lambda *_, q=q: q, draws=DRAWS, importance_draws=IMPORTANCE_DRAWS
            )
            for values, estimate in zip(nats.values(), pair, strict=True):
                values += estimate.nats_B.tolist()
            kl += q.kl().flatten(1).sum(1).tolist()
        flops = measures.flops_with_steps(model, steps * method.passes, 0, self.tokens_NL.shape[1])
        return {"nats": nats, "kl": float(np.mean(kl)), "flops_per_token": flops}


def learned(training: Measurement, steps: int) -> Natural:
    """The step sizes of `GRID` with the best ELBO on other blocks."""
    tried = {pair: training.scored(Natural(lr=pair[0], precision_lr=pair[1]), steps)["nats"]["elbo"] for pair in GRID}
    lr, precision_lr = max(tried, key=lambda pair: float(np.mean(tried[pair])))
    return Natural(lr=lr, precision_lr=precision_lr)


def _grid(title: str) -> Table:
    t = Table(title=title, box=box.MARKDOWN)
    t.add_column("Fit")
    for steps in STEPS:
        t.add_column(f"T = {steps}", justify="right")
    return t


def table(name: str, records: Mapping[tuple[str, int], Mapping[str, Any]], length: int) -> Table:
    """One row a method, one column a number of gradients: ELBO and KL, and the fewest that reach the reference."""
    reference = records[REFERENCE, REFERENCE_STEPS]
    at, importance = (-float(np.mean(reference["nats"][bound])) / length for bound in ("elbo", "importance_bound"))
    t = _grid(
        f"{name}: ELBO, nats per token (KL per block). {REFERENCE} at T = {REFERENCE_STEPS}: {at:.4f}, "
        f"importance {importance:.4f}; + : no worse by a paired 95% interval"
    )
    for method in dict.fromkeys(name for name, steps in records if steps in STEPS):
        cells = []
        for steps in STEPS:
            r = records[method, steps]
            elbo = -float(np.mean(r["nats"]["elbo"])) / length
            _, low, _ = difference(np.array(r["nats"]["elbo"]), np.array(reference["nats"]["elbo"]), length)
            mark = "+" if low <= 0 else ""
            learned_as = f" {r['settings']}" if "settings" in r else ""
            cells.append(f"{elbo:.4f} ({r['kl']:.1f}){mark}{learned_as}")
        t.add_row(method, *cells)
    return t


def summary(records_of: Sequence[Mapping[tuple[str, int], Mapping[str, Any]]], lengths: Sequence[int]) -> Table:
    """One row a method that all models were fitted by: how far its ELBO is behind the reference on average."""
    t = _grid(
        f"{len(records_of)} models: nats per token by which the ELBO is behind {REFERENCE} at "
        f"T = {REFERENCE_STEPS}, on average (models on which it is no worse by a paired 95% interval)"
    )
    for method in dict.fromkeys(name for name, steps in records_of[0] if steps in STEPS):
        if not all((method, steps) in records for records in records_of for steps in STEPS):
            continue
        cells = []
        for steps in STEPS:
            found = [
                difference(
                    np.array(records[method, steps]["nats"]["elbo"]),
                    np.array(records[REFERENCE, REFERENCE_STEPS]["nats"]["elbo"]),
                    length,
                )
                for records, length in zip(records_of, lengths, strict=True)
            ]
            no_worse = sum(low <= 0 for _, low, _ in found)
            cells.append(f"{np.mean([value for value, _, _ in found]):+.4f} ({no_worse})")
        t.add_row(method, *cells)
    return t


def draw(records: Mapping[tuple[str, int], Mapping[str, Any]], length: int, name: str, file: Path) -> str:
    """Draw the ELBO of each method over executed FLOPs, as SVG; return where it is, or why there is none."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return NO_FIGURE
    figure = Figure(figsize=(7, 5), layout="constrained")
    axis = figure.subplots()
    for method in dict.fromkeys(name for name, _ in records):
        points = sorted(
            (r["flops_per_token"], -np.mean(r["nats"]["elbo"]) / length) for (m, _), r in records.items() if m == method
        )
        axis.plot(*zip(*points, strict=True), "o-", ms=3, lw=1, label=method)
    axis.set_xscale("log")
    axis.set_xlabel("executed FLOPs per token to fit q")
    axis.set_ylabel("ELBO, nats per token")
    axis.set_title(name)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=6)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    return f"figure written to {file}"


def study(
    loaded: LoadedModel, chosen: Sequence[str], options: argparse.Namespace, file: Path
) -> dict[tuple[str, int], Mapping[str, Any]]:
    """Measure what is missing of the chosen methods for one model; return those records by method and steps."""
    if not isinstance(loaded.model, LatentThoughtModel) or not loaded.model.gaussian_posterior:
        raise UserError(f"{loaded.name}: expected an LTM that fits q, found the family {loaded.info['family']}")
    loaded.model.requires_grad_(False)
    length, matmul = loaded.model.block_length, loaded.model.config.posterior.matmul
    blocks = {
        split: spread_blocks(options.corpus, options.data_dir, loaded.tokenizer, length, count, split)
        for split, count in (("validation", options.blocks), ("train", options.blocks // 2))
    }
    here, training = (
        Measurement(loaded=loaded, tokens_NL=each.to(options.device), matmul=matmul) for each in blocks.values()
    )
    done, records = kept(file), {}

    def measure(name: str, steps: int, method: Method | None, start: Start | None = None) -> None:
        key = digest([loaded.info["weights_digest"], options.corpus, options.blocks, name, steps, repr(method)])
        if key not in done:
            used = method or learned(training, steps)
            record = {
                "key": key,
                "model": loaded.name,
                "method": name,
                "steps": steps,
                **here.scored(used, steps, start),
            }
            if method is None:
                assert isinstance(used, Natural)
                record["settings"] = f"{used.lr:g}/{used.precision_lr:g}"
            log.append(file, record)
            done[key] = record
        records[name, steps] = done[key]

    measure(REFERENCE, REFERENCE_STEPS, METHODS[REFERENCE])
    for name, method in METHODS.items():
        for steps in STEPS if name in chosen else ():
            measure(name, steps, method)
    if FROM_THE_MEAN in chosen:
        fitted = training.fits(METHODS["natural, 0.3"], STEPS[-1])
        means = Posterior(
            mean=torch.cat([q.mean for q in fitted]), log_variance=torch.cat([q.log_variance for q in fitted])
        )
        for steps in STEPS:
            measure(FROM_THE_MEAN, steps, METHODS["natural, 0.3"], mean_start(means))
    for steps in STEPS if LEARNED in chosen else ():
        measure(LEARNED, steps, None)
    return records


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, then print a table and draw a figure for each model."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.inference_steps", description=__doc__)
    p.add_argument("models", nargs="+", type=Path, metavar="DIRECTORY", help="a trained LTM")
    p.add_argument("--corpus", required=True, help="whose held-out blocks to fit q to")
    p.add_argument("--data-dir", type=Path, help="where corpora lie")
    p.add_argument("--blocks", type=int, default=64, help="held-out blocks; default: 64")
    p.add_argument("--methods", default="", help="a regular expression for the names of ways to fit q; default: all")
    p.add_argument("--device", default="cpu")
    p.add_argument("--output", type=Path, default=Path("runs/inference_steps"), help="default: runs/inference_steps")
    options = p.parse_args(arguments)
    names = (*METHODS, FROM_THE_MEAN, LEARNED)
    try:
        chosen = [name for name in names if re.search(options.methods, name)]
    except re.error as error:
        raise UserError(f"--methods {options.methods}: no regular expression: {error}") from None
    if not chosen:
        raise UserError(f"--methods {options.methods}: found in no name; those are {'; '.join(names)}")
    options.output.mkdir(parents=True, exist_ok=True)
    console = Console(width=140)
    found, lengths = [], []
    for number, directory in enumerate(options.models):
        loaded = checkpoint.load(directory, device=options.device)
        records = study(loaded, chosen, options, options.output / "results.jsonl")
        title = f"{loaded.name} on {options.corpus}"
        console.print(table(title, records, loaded.model.block_length))
        found.append(records)
        lengths.append(loaded.model.block_length)
        print(draw(records, loaded.model.block_length, title, options.output / f"elbo-{number + 1}.svg"))
    if len(found) > 1:
        console.print(summary(found, lengths))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
