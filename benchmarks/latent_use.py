"""Measure what a latent model gains, or loses, against its own decoder on real text: `python -m benchmarks.latent_use`.

Trains a windowed autoregressive model (AR) and Latent Thought Models (LTM) with the same decoder on the same tokens,
one setting after another, and scores all on the same held-out blocks: the AR exactly, the LTM by its ELBO and its
importance bound on fresh noise. Group `lag` asks what keeps an LTM behind its own decoder: how cross-attention starts,
how fast it learns, when z is first heard. Group `use` asks, from there, what makes z carry information.

Each finished run is a line of `results.jsonl`; the same command continues where it was stopped. Shapes: N blocks, L
tokens per block.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
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

from benchmarks.gain_report import difference, with_interval
from benchmarks.latent_gain import kept, scored
from benchmarks.latent_variants import CONTROLS, GROUPS, Run, configured, control_of
from ltm.config import digest, to_dict
from ltm.data import corpora
from ltm.data.token_dataset import TokenDataset
from ltm.errors import UserError, did_you_mean, run_command
from ltm.files import home
from ltm.tokenizer import Tokenizer
from ltm.training import checkpoint, log
from ltm.training.config import DEFAULT_CORPUS
from ltm.training.run import train_model


def planned(groups: Sequence[str], only: str, seeds: Sequence[int]) -> list[Run]:
    """The controls that are needed, then variants in whose name `only` is found; all of one seed before the next."""
    variants = [name for group in groups for name in GROUPS[group] if re.search(only, name)]
    names = dict.fromkeys([*map(control_of, variants), *variants])
    return [Run(variant=name, seed=seed) for seed in seeds for name in names]


@functools.cache
def spread_blocks(
    corpus: str, data_dir: Path | None, tokenizer: Tokenizer, length: int, blocks: int, split: str = "validation"
) -> Tensor:
    """Full blocks of a split, evenly spread over it, (N, L)."""
    text = corpora.load(corpus, split, data_dir=data_dir)
    data = TokenDataset.build(
        text,
        tokenizer,
        block_length=length,
        eos_between_documents=text.unit == "document",
        cache_dir=home() / "tokens",
    )
    if data.blocks < blocks:
        raise UserError(f"{corpus}/{split} has {data.blocks} blocks of {length} tokens; ask for as many: --blocks")
    rows = np.linspace(0, data.blocks - 1, blocks).astype(int)
    return torch.from_numpy(data.stream.rows((rows * length).tolist(), length))


def measured(run: Run, options: argparse.Namespace) -> dict[str, Any]:
    """Train and score one run; return its record."""
    cls, config, recipe = configured(run, options)
    place = f"{run.name}, {key(run, options)[:8]}".replace(" ", "-")
    folder = train_model(
        run.name,
        cls,
        config,
        recipe,
        corpus=options.corpus,
        data_dir=options.data_dir,
        tokenizer_name=options.tokenizer,
        output=options.output / "models" / place,
        device=options.device,
    )
    # Some classes here are no registered families, which a checkpoint would be loaded by.
    tokenizer, (_, info) = Tokenizer.load(folder), checkpoint.read_info(folder)
    model = cls(dataclasses.replace(config, vocab_size=tokenizer.vocab_size))
    model.load_state_dict(checkpoint.load_weights(folder))
    model = model.to(options.device).eval().requires_grad_(False)
    tokens_NL = spread_blocks(options.corpus, options.data_dir, tokenizer, options.length, options.blocks)
    cost, training = model.cost(options.length), info["training"]
    return {
        "variant": run.variant,
        "seed": run.seed,
        "parameters": cost.parameters,
        "flops_per_token": cost.train_flops_per_token,
        **{name: training[name] for name in ("tokens", "flops", "seconds", "dtype")},
        **scored(model, tokens_NL.to(options.device)),
    }


def key(run: Run, options: argparse.Namespace) -> str:
    """Return a digest of everything that can change a run's numbers."""
    cls, config, recipe = configured(run, options)
    about = [options.corpus, options.tokenizer, options.length, options.blocks]
    return digest([cls.__name__, to_dict(config), to_dict(recipe), about])


def over_control(records: Mapping[tuple[str, int], Mapping[str, Any]], run: Run, likelihood: str, length: int) -> str:
    """Nats per token that a run needs more than its control of the same seed, paired by block, with 95% interval."""
    own, other = records[run.variant, run.seed], records[control_of(run.variant), run.seed]
    nats = np.array(own["nats"][likelihood]), np.array(other["nats"]["exact"])
    return with_interval(*difference(*nats, length))


def table(records: Mapping[tuple[str, int], Mapping[str, Any]], runs: Sequence[Run], options: Any) -> Table:
    """One row a run: likelihood in nats per token, the difference to the AR with the same decoder, KL, cost."""
    t = Table(
        title=f"{options.corpus}, {options.tokens} tokens, width {options.width}, window {options.window}, blocks of "
        f"{options.length}; nats per token on {options.blocks} held-out blocks",
        box=box.MARKDOWN,
    )
    for column in ("Model", "Seed", "Exact or ELBO", "Importance", "ELBO − AR", "KL a block", "MFLOP a token"):
        t.add_column(column, justify="left" if column == "Model" else "right")
    for run in runs:
        r = records[run.variant, run.seed]
        nats = {name: -float(np.mean(each)) / options.length for name, each in r["nats"].items()}
        latent = "elbo" in nats
        t.add_row(
            run.variant,
            str(run.seed),
            f"{nats['elbo' if latent else 'exact']:.3f}",
            f"{nats['importance_bound']:.3f}" if latent else "",
            over_control(records, run, "elbo", options.length) if latent else "",
            f"{r['kl']:.1f}" if latent else "",
            f"{r['flops_per_token'] / 1e6:.1f}",
        )
    return t


def main() -> None:
    """Train and score missing runs, then print the table."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.latent_use", description=__doc__)
    p.add_argument("--groups", default="lag", help=f"some of {', '.join(GROUPS)}; default: lag")
    p.add_argument("--only", default="", help="a regular expression for names of variants; default: all")
    p.add_argument("--corpus", default=DEFAULT_CORPUS, help=f"default: {DEFAULT_CORPUS}")
    p.add_argument("--data-dir", type=Path, help="where corpora lie")
    p.add_argument("--tokenizer", default="bpe-2048", help="default: bpe-2048")
    p.add_argument("--tokens", default="400k", help="training tokens per run; default: 400k")
    p.add_argument("--batch", type=int, default=4, help="blocks per update; default: 4")
    p.add_argument("--lr", type=float, default=2e-3, help="peak learning rate; default: 2e-3")
    p.add_argument("--width", type=int, default=128, help="of the decoder; default: 128")
    p.add_argument("--window", type=int, default=16, help="positions that attention sees; default: 16")
    p.add_argument("--length", type=int, default=255, help="tokens per block; default: 255")
    p.add_argument("--seeds", default="0", help="training seeds, with commas; default: 0")
    p.add_argument("--blocks", type=int, default=96, help="held-out blocks to score; default: 96")
    p.add_argument("--device", default="cpu")
    p.add_argument("--output", type=Path, default=Path("runs/latent_use"), help="default: runs/latent_use")
    options = p.parse_args()
    groups = options.groups.split(",")
    for group in groups:
        if group not in GROUPS:
            raise did_you_mean("group", group, GROUPS)
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
    except ValueError:
        raise UserError(f"--seeds {options.seeds}: expected whole numbers with commas between them") from None
    try:
        runs = planned(groups, options.only, seeds)
    except re.error as error:
        raise UserError(f"--only {options.only}: no regular expression: {error}") from None
    if all(run.variant in CONTROLS for run in runs):
        raise UserError(f"--only {options.only}: no variant of {', '.join(groups)} has such a name")
    file = options.output / "results.jsonl"
    done, records = kept(file), {}
    for run in runs:
        name = key(run, options)
        if name not in done:
            done[name] = {"key": name, **measured(run, options)}
            log.append(file, done[name])
        records[run.variant, run.seed] = done[name]
    Console(width=120).print(table(records, runs, options))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
