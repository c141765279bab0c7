"""Measure what latents add to a decoder, on texts whose true likelihood is known.

`python -m benchmarks.latent_gain` trains a decoder with and without latents on the known source `topics`, whose hidden
topic couples all words of a text while attention sees only a few. It scores both on the same fresh texts with valid
likelihoods only: the autoregressive model (AR) exactly, the Latent Thought Model (LTM) by its ELBO and importance
bound. Then it changes one setting of the LTM at a time. Each finished run is a line of `results.jsonl`; the same
command continues where it was stopped.

Shapes: N texts, L tokens per text.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from baselines.ar import ARConfig, Autoregressive
from benchmarks.gain_report import BASE, EQUAL_FLOPS, Gains, draw
from ltm.config import digest, from_dict, to_dict, with_settings
from ltm.errors import UserError, did_you_mean, run_command
from ltm.files import write_atomically
from ltm.known_sources.base import from_settings
from ltm.known_sources.topics import Topics
from ltm.latent.base import LatentModel
from ltm.latent.model import LatentThoughtModel, LTMConfig
from ltm.latent.posterior import PosteriorConfig
from ltm.nn.transformer import TransformerConfig
from ltm.rng import SequenceRng
from ltm.training import checkpoint, log
from ltm.training.config import TrainConfig
from ltm.training.run import train_model
from tasks.diagnostics import measures

FACTORS: Mapping[str, Sequence[str]] = {
    "kl_warmup": ("0.0", "0.1", "0.7"),
    "free_bits": ("2.0", "8.0"),
    "decoder.window": ("2", "8", "none"),
    "latents": ("2", "8", "16"),
    "posterior.lr": ("0.03", "0.3"),
    "posterior.steps": ("0", "4", "16", "64"),
}
"""Settings of the LTM and the values that each takes while all others stay. The AR has the same window."""
DRAWS, IMPORTANCE_DRAWS, BATCH = 8, 16, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A model to train and score.

    Attributes:
        model: `ar` or `ltm`.
        change: empty for the base, a `setting=value`, or `equal FLOPs`.
        seed: of training.
    """

    model: str
    change: str
    seed: int

    @property
    def name(self) -> str:
        """The run's name, for people and for its directory."""
        return f"{self.model} {self.change or 'base'}, seed {self.seed}"


def planned(seeds: int, only: Sequence[str]) -> Iterator[Run]:
    """Yield the base with every seed, then every change: all seeds for ARs of another window, one for costly runs."""
    for seed in range(seeds):
        yield Run(model="ar", change=BASE, seed=seed)
        yield Run(model="ltm", change=BASE, seed=seed)
    for factor, _, one in (part.partition("=") for part in only):
        if factor == EQUAL_FLOPS:
            yield Run(model="ar", change=EQUAL_FLOPS, seed=0)
        for value in [one] if one else FACTORS.get(factor, ()):
            if factor == "decoder.window":
                yield from (Run(model="ar", change=f"{factor}={value}", seed=seed) for seed in range(seeds))
            yield Run(model="ltm", change=f"{factor}={value}", seed=0)


def base_config(source: Topics) -> LTMConfig:
    """Return the config of the base LTM; the AR has its decoder without the part that reads z."""
    decoder = TransformerConfig(layers=2, width=64, heads=4, hidden=176, max_length=source.length + 1, window=4)
    return LTMConfig(decoder=decoder, latents=4, posterior=PosteriorConfig(steps=8, lr=0.1), kl_warmup=0.3)


def fresh(source: Topics, texts: int) -> torch.Tensor:
    """Draw texts that no training has seen, as symbols (N, L)."""
    return source.sample(texts, seed=0, purpose="latent gain")


def configured(run: Run, source: Topics, tokens: str, flops: float) -> tuple[type, Any, TrainConfig]:
    """Return family, config and recipe of a run; `flops` is the training cost of the base LTM."""
    config: Any = base_config(source)
    if run.model == "ar":
        config = ARConfig(decoder=config.decoder)
    budget = f"flops={flops!r}" if run.change == EQUAL_FLOPS else f"tokens={tokens}"
    settings = {"budget": budget, "batch": 8, "lr": 4e-3, "warmup": 0.1, "ema": 0.99, "seed": run.seed}
    recipe = from_dict(TrainConfig, settings, where="--tokens")
    if "=" in run.change:
        config = with_settings(config, [run.change])
    return {"ar": Autoregressive, "ltm": LatentThoughtModel}[run.model], config, recipe


def key(run: Run, source: Topics, options: argparse.Namespace, flops: float) -> str:
    """Return a digest of everything that can change a run's numbers."""
    _, config, recipe = configured(run, source, options.tokens, flops)
    return digest([run.model, to_dict(config), to_dict(recipe), source.spec, options.texts, DRAWS, IMPORTANCE_DRAWS])


def measured(run: Run, source: Topics, options: argparse.Namespace, flops: float) -> dict[str, Any]:
    """Train and score one run; return its record."""
    cls, config, recipe = configured(run, source, options.tokens, flops)
    output = options.output / "models" / f"{run.name}, {options.tokens}".replace(" ", "-")
    folder = train_model(run.name, cls, config, recipe, corpus=source.spec, tokenizer_name="bytes", output=output)
    loaded = checkpoint.load(folder)
    texts = source.texts(fresh(source, options.texts))
    tokens_NL = torch.from_numpy(np.stack(loaded.tokenizer.encode_batch(texts))).long()
    cost, training = loaded.model.cost(source.length), loaded.info["training"]
    return {
        "model": run.model,
        "change": run.change,
        "seed": run.seed,
        "parameters": cost.parameters,
        "flops_per_token": cost.train_flops_per_token,
        **{name: training[name] for name in ("tokens", "steps", "flops", "seconds")},
        **scored(loaded.model, tokens_NL),
    }


@torch.no_grad()
def scored(model: Any, tokens_NL: torch.Tensor) -> dict[str, Any]:
    """Return nats of each text by every valid likelihood and, for a latent model, statistics of its posteriors."""
    rng = SequenceRng(0, range(len(tokens_NL)))
    parts = list(measures.batches(tokens_NL, rng, BATCH))
    if not isinstance(model, LatentModel):
        exact = [model.log_likelihood(tokens_BL, rng=noise).nats_B for tokens_BL, noise in parts]
        return {"nats": {"exact": torch.cat(exact).tolist()}}
    pairs = [
        measures.point(
            model,
            tokens_BL,
            noise,
            lambda tokens_BL, noise: model.infer(tokens_BL, noise),
            draws=DRAWS,
            importance_draws=IMPORTANCE_DRAWS,
        )
        for tokens_BL, noise in parts
    ]
    elbo_N, importance_N = (torch.cat([pair[which].nats_B for pair in pairs]) for which in (0, 1))
    # All under the same noise, so that posteriors differ only by their texts.
    q = measures.posterior(model, tokens_NL, SequenceRng(0, [0] * len(tokens_NL)), BATCH)
    return {
        "nats": {"elbo": elbo_N.tolist(), "importance_bound": importance_N.tolist()},
        "kl": float(torch.cat([-pair[0].terms["-kl"] for pair in pairs]).mean()),
        "active_units": measures.active_units(q.mean),
        "units": q.mean[0].numel(),
        "mutual_information": float(measures.mutual_information(q, rng, draws=4).mean()),
    }


def kept(file: Path) -> dict[str, dict[str, Any]]:
    """Read finished runs by key; a truncated last line is removed."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    if lines and not lines[-1].endswith("\n"):
        write_atomically(file, "".join(lines := lines[:-1]).encode())
    return {record["key"]: record for record in map(json.loads, lines)}


def main() -> None:
    """Train and score missing runs, then print the tables."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.latent_gain", description=__doc__)
    factors = (EQUAL_FLOPS, *FACTORS)
    p.add_argument(
        "--only",
        metavar="FACTORS",
        help=f"some of {', '.join(factors)}, or one value, such as latents=2; base: none of them; default: all",
    )
    p.add_argument("--source", default="topics", help="topics, optionally with settings: topics:words=32")
    p.add_argument("--tokens", default="400k", help="training tokens per run; default: 400k")
    p.add_argument("--seeds", type=int, default=3, help="training seeds of the base; default: 3")
    p.add_argument("--texts", type=int, default=256, help="fresh texts to score; default: 256")
    p.add_argument("--output", type=Path, default=Path("runs/latent_gain"), help="default: runs/latent_gain")
    options = p.parse_args()
    source = from_settings(options.source)
    only = factors if options.only is None else tuple(options.only.split(","))
    if not isinstance(source, Topics):
        raise UserError(f"--source {options.source}: expected topics with or without settings")
    for factor in only:
        if factor.partition("=")[0] not in (*factors, "base"):
            raise did_you_mean("factor", factor, (*factors, "base"))
    if options.seeds < 1 or options.texts < 2:
        raise UserError("expected at least 1 seed and 2 texts")
    file = options.output / "results.jsonl"
    done, flops = kept(file), 1.0
    records: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in planned(options.seeds, only):
        name = key(run, source, options, flops)
        if name not in done:
            record = {"key": name, **measured(run, source, options, flops)}
            log.append(file, record)
            done[name] = record
        records.setdefault((run.model, run.change), []).append(done[name])
        if (run.model, run.change) == ("ltm", BASE):
            flops = done[name]["flops"]
    gains = Gains(records=records, source=source, symbols_NL=fresh(source, options.texts))
    console = Console(width=100)
    console.print(gains.over_ar(base_config(source)))
    console.print(gains.of_settings())
    print(draw(gains, FACTORS, base_config(source), options.output / f"gains-{options.tokens}.svg"))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
