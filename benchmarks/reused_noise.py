"""Show why a likelihood at the noise that q was fitted to is no bound; takes about two minutes on two cores.

`python -m benchmarks.reused_noise` trains a small Latent Thought Model twice on the known source `topics`: once with
fresh noise in every fast step, once with one noise for all steps of a text. Then it scores fresh texts of the source,
whose true likelihood is known, with more and more fast steps. The total claimed in excess of the truth is the log of an
e-value: for a likelihood, or a bound on one, it stays below log 100 in 99 of 100 such trials.
Shapes: B texts of a batch, N texts, L tokens per text.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.gain_report import NO_FIGURE
from ltm.errors import UserError, did_you_mean, run_command
from ltm.known_sources.base import KnownSource, from_settings
from ltm.latent.model import LatentThoughtModel, LTMConfig
from ltm.latent.posterior import PosteriorConfig
from ltm.nn.transformer import TransformerConfig
from ltm.rng import SequenceRng
from ltm.training import checkpoint
from ltm.training.config import TrainConfig
from ltm.training.run import train_model
from tasks.audit.checks.evidence import Evidence, evidence, threshold

CLOSER = ("posterior.lr=0.1",)
TRAINED = {
    "fresh noise": (PosteriorConfig(), CLOSER),
    "reused noise": (PosteriorConfig(noise="reused"), CLOSER),
    "published_code": (PosteriorConfig.NAMED["published_code"], ()),
}
"""Posterior settings in training, by name, and further settings in scoring: a third of the learning rate, with which
longer fits end nearer to their optimum."""
NUMBERS = {
    "reused_noise_estimate": "reused-noise estimate",
    "elbo": "ELBO",
    "importance_bound": "importance bound",
}
SOURCE = "topics:length=64,topics=8,chain_scale=0.0"
"""A source whose words depend on the topic alone: quickly learned, so that models are near the truth after a minute."""
DRAWS, BATCH = 2, 32

Scores = dict[tuple[str, int, str], np.ndarray]
"""Nats of each text, by (training, fast steps, likelihood)."""


def scored(name: str, spec: str, updates: int, texts: int, steps: tuple[int, ...], output: Path) -> Scores:
    """Train one model, on one thread, and score fresh texts of the source."""
    torch.set_num_threads(1)
    source = from_settings(spec)
    decoder = TransformerConfig(layers=2, width=64, heads=4, hidden=176, max_length=source.length + 1, window=4)
    folder = train_model(
        name,
        LatentThoughtModel,
        LTMConfig(decoder=decoder, latents=8, posterior=TRAINED[name][0], kl_warmup=0.3),
        TrainConfig(budget=f"tokens={updates * 4 * source.length}", batch=4, lr=1e-2, warmup=0.1, ema=0.99),
        corpus=spec,
        tokenizer_name="bytes",
        output=output / "models" / name.replace(" ", "-"),
    )
    scores: Scores = {}
    for count in steps:
        loaded = checkpoint.load(folder, settings=[f"posterior.steps={count}", *TRAINED[name][1]])
        encoded = loaded.tokenizer.encode_batch(source.texts(fresh(source, texts)))
        tokens_NL = torch.from_numpy(np.stack(encoded)).long()
        parts: dict[str, list[torch.Tensor]] = {likelihood: [] for likelihood in NUMBERS}
        for first in range(0, texts, BATCH):
            tokens_BL = tokens_NL[first : first + BATCH]
            rng = SequenceRng(0, range(first, first + len(tokens_BL)))
            for likelihood, estimate in loaded.model.log_likelihoods(tokens_BL, draws=DRAWS, rng=rng).items():
                parts[likelihood].append(estimate.nats_B)
        scores |= {(name, count, likelihood): torch.cat(nats).numpy() for likelihood, nats in parts.items()}
    return scores


def fresh(source: KnownSource, texts: int) -> torch.Tensor:
    """Draw texts that no training has seen, as symbols (N, L)."""
    return source.sample(texts, seed=0, purpose="reused noise")


def main() -> None:
    """Train, score, print the table and draw the figure."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.reused_noise", description=__doc__)
    p.add_argument("--train", metavar="NAMES", default="fresh noise,reused noise", help=f"some of {', '.join(TRAINED)}")
    p.add_argument("--source", default=SOURCE, help=f"a known source; default: {SOURCE}")
    p.add_argument("--updates", type=int, default=400, help="training updates of 4 texts each; default: 400")
    p.add_argument("--texts", type=int, default=64, help="fresh texts to score; default: 64")
    p.add_argument(
        "--steps", type=int, nargs="+", default=[16, 64, 128], help="scoring's fast steps; default: 16 64 128"
    )
    p.add_argument("--output", type=Path, default=Path("runs/reused_noise"), help="default: runs/reused_noise")
    options = p.parse_args()
    names, steps = options.train.split(","), tuple(options.steps)
    for name in names:
        if name not in TRAINED:
            raise did_you_mean("training", name, TRAINED)
    if min(options.updates, options.texts, *steps) < 1:
        raise UserError("expected at least 1 update, 1 text and 1 fast step")
    source = from_settings(options.source)
    true_N = source.log_likelihood(fresh(source, options.texts)).numpy()
    # Small models gain nothing from a second thread, but two trainings gain from a second process.
    with ProcessPoolExecutor(min(len(names), os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        jobs = [
            pool.submit(scored, name, source.spec, options.updates, options.texts, steps, options.output)
            for name in names
        ]
        scores = {key: nats_N for job in jobs for key, nats_N in job.result().items()}
    weighed = {key: evidence(nats_N, true_N) for key, nats_N in scores.items()}
    Console(width=100).print(table(scores, weighed, true_N, source))
    print(draw(scores, weighed, true_N, source, options.output / "reused_noise.svg"))


def table(
    scores: Scores, weighed: dict[tuple[str, int, str], Evidence], true_N: np.ndarray, source: KnownSource
) -> Table:
    """Make one row per training, number of fast steps and claim."""
    L = source.length
    rows = Table(
        title=f"{source.spec}: {len(true_N)} fresh texts of {L} tokens, truly {-true_N.mean() / L:.3f} nats per token; "
        f"claims beyond the truth of more than {threshold():.1f} nats in total are refuted",
        box=box.MARKDOWN,
    )
    for column in ("Trained with", "T", "Claim", "Nats/token", "Beyond the truth", "Verdict"):
        rows.add_column(column, justify="right" if column in ("T", "Nats/token", "Beyond the truth") else "left")
    for (name, count, likelihood), nats_N in scores.items():
        one = weighed[name, count, likelihood]
        rows.add_row(
            name,
            str(count),
            NUMBERS[likelihood],
            f"{-nats_N.mean() / L:.3f}",
            f"{one.log_e_value:+,.0f}",
            "refuted" if one.refuted else "",
        )
    return rows


def draw(
    scores: Scores,
    weighed: dict[tuple[str, int, str], Evidence],
    true_N: np.ndarray,
    source: KnownSource,
    file: Path,
) -> str:
    """Draw claims over fast steps, and log e-values of the longest fits over texts, as SVG; return where it is."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return NO_FIGURE
    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = sorted({count for _, count, _ in scores})
    for index, name in enumerate(dict.fromkeys(name for name, _, _ in scores)):
        for likelihood, style in zip(NUMBERS, ("o-", "s--", "^:"), strict=True):
            label, color = f"{NUMBERS[likelihood]}, {name}", f"C{index}"
            values = [-scores[name, count, likelihood].mean() / source.length for count in steps]
            left.plot(steps, values, style, ms=4, color=color, label=label)
            curve_N = weighed[name, steps[-1], likelihood].curve_N
            right.plot(np.arange(1, len(curve_N) + 1), curve_N, style[1:], color=color)
    left.axhline(-true_N.mean() / source.length, color="k", lw=1, label="the truth")
    left.set_xscale("log", base=2)
    left.set_xticks(steps, [str(count) for count in steps])
    left.set_xlabel("fast steps in scoring")
    left.set_ylabel("claimed nats per token")
    left.legend(fontsize=7)
    right.axhline(threshold(), color="k", lw=1)
    right.set_yscale("symlog", linthresh=10)
    right.set_xlabel(f"texts, at {steps[-1]} fast steps")
    right.set_ylabel("log e-value; refuted above the line")
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(file, metadata={"Date": None})
    return f"figure written to {file}"


if __name__ == "__main__":
    raise SystemExit(run_command(main))
