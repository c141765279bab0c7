"""What a latent model gains over the same decoder without latents, on texts whose true likelihood is known.

`python -m benchmarks.latent_gain` trains both on the known source `topics`, whose hidden topic couples all words of a
text while attention sees a few, and scores them on the same fresh texts by valid numbers alone: the autoregressive
model (AR) exactly, the Latent Thought Model (LTM) by its ELBO and importance bound. Then it changes one setting of the
LTM at a time. A finished run is a line of `results.jsonl`; the same command goes on where it was stopped.

Shapes: N texts, L tokens of a text.
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
from rich import box
from rich.console import Console
from rich.table import Table

from baselines.ar import ARConfig, Autoregressive
from ltm import checkpoint, training_log
from ltm.config import digest, to_dict, with_settings
from ltm.errors import UserError, did_you_mean, run_command
from ltm.files import write_atomically
from ltm.known_source import from_settings
from ltm.latent_model import LatentModel
from ltm.model import LatentThoughtModel, LTMConfig
from ltm.posterior import PosteriorConfig
from ltm.rng import SequenceRng
from ltm.topics import Topics
from ltm.train_cli import train_model
from ltm.train_config import TrainConfig
from ltm.transformer import TransformerConfig
from tasks import diagnostics, stats

BASE, EQUAL_FLOPS = "", "equal FLOPs"
FACTORS: Mapping[str, Sequence[str]] = {
    "kl_warmup": ("0.0", "0.1", "0.7"),
    "free_bits": ("2.0", "8.0"),
    "decoder.window": ("2", "8", "none"),
    "latents": ("2", "8", "16"),
    "posterior.lr": ("0.03", "0.3"),
    "posterior.steps": ("0", "4", "16", "64"),
}
"""Settings of the LTM, and what each is set to while all others stay. The AR has the same window."""
DRAWS, IMPORTANCE_DRAWS, BATCH = 8, 16, 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A model to train and score: `change` is `` for the base, a `setting=value`, or `equal FLOPs`."""

    model: str
    change: str
    seed: int

    @property
    def name(self) -> str:
        """For people, and for its directory."""
        return f"{self.model} {self.change or 'base'}, seed {self.seed}"


def planned(seeds: int, only: Sequence[str]) -> Iterator[Run]:
    """The base with each seed first, then every change: each seed for an AR of another window, one for what is dear."""
    for seed in range(seeds):
        yield Run(model="ar", change=BASE, seed=seed)
        yield Run(model="ltm", change=BASE, seed=seed)
    for factor in only:
        if factor == EQUAL_FLOPS:
            yield Run(model="ar", change=EQUAL_FLOPS, seed=0)
        for value in FACTORS.get(factor, ()):
            if factor == "decoder.window":
                yield from (Run(model="ar", change=f"{factor}={value}", seed=seed) for seed in range(seeds))
            yield Run(model="ltm", change=f"{factor}={value}", seed=0)


def configured(run: Run, source: Topics, tokens: str, flops: float) -> tuple[type, Any, TrainConfig]:
    """Family, config and recipe of a run; `flops` is what the LTM's training takes."""
    decoder = TransformerConfig(layers=2, width=64, heads=4, hidden=176, max_length=source.length + 1, window=4)
    posterior = PosteriorConfig(steps=8, lr=0.1)
    config: Any = ARConfig(decoder=decoder)
    if run.model == "ltm":
        config = LTMConfig(decoder=decoder, latents=4, posterior=posterior, kl_warmup=0.3)
    budget = f"flops={flops!r}" if run.change == EQUAL_FLOPS else f"tokens={tokens}"
    recipe = TrainConfig(budget=budget, batch=8, lr=4e-3, warmup=0.1, ema=0.99, seed=run.seed)
    if "=" in run.change:
        config = with_settings(config, [run.change])
    return {"ar": Autoregressive, "ltm": LatentThoughtModel}[run.model], config, recipe


def key(run: Run, source: Topics, options: argparse.Namespace, flops: float) -> str:
    """What tells a finished run from others: everything that can change its numbers."""
    _, config, recipe = configured(run, source, options.tokens, flops)
    return digest([run.model, to_dict(config), to_dict(recipe), source.spec, options.texts, DRAWS, IMPORTANCE_DRAWS])


def measured(run: Run, source: Topics, options: argparse.Namespace, flops: float) -> dict[str, Any]:
    """Train and score one run; the record that is kept of it."""
    cls, config, recipe = configured(run, source, options.tokens, flops)
    output = options.output / "models" / f"{run.name}, {options.tokens}".replace(" ", "-")
    folder = train_model(run.name, cls, config, recipe, corpus=source.spec, tokenizer_name="bytes", output=output)
    loaded = checkpoint.load(folder)
    texts = source.texts(source.sample(options.texts, seed=0, purpose="latent gain"))
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
    """Nats of each text by every valid number and, of a latent model, what its posteriors say."""
    rng = SequenceRng(0, range(len(tokens_NL)))
    parts = list(diagnostics.batches(tokens_NL, rng, BATCH))
    if not isinstance(model, LatentModel):
        exact = [model.log_likelihood(tokens_BL, rng=own).nats_B for tokens_BL, own in parts]
        return {"nats": {"exact": torch.cat(exact).tolist()}}
    pairs = [
        diagnostics.point(
            model,
            tokens_BL,
            own,
            lambda tokens_BL, own: model.infer(tokens_BL, own),
            draws=DRAWS,
            importance_draws=IMPORTANCE_DRAWS,
        )
        for tokens_BL, own in parts
    ]
    elbo_N, importance_N = (torch.cat([pair[which].nats_B for pair in pairs]) for which in (0, 1))
    # Under one noise, so that posteriors differ by what their texts say.
    q = diagnostics.posterior(model, tokens_NL, SequenceRng(0, [0] * len(tokens_NL)), BATCH)
    return {
        "nats": {"elbo": elbo_N.tolist(), "importance_bound": importance_N.tolist()},
        "kl": float(torch.cat([-pair[0].terms["-kl"] for pair in pairs]).mean()),
        "active_units": diagnostics.active_units(q.mean),
        "units": q.mean[0].numel(),
        "mutual_information": float(diagnostics.mutual_information(q, rng, draws=4).mean()),
    }


def kept(file: Path) -> dict[str, dict[str, Any]]:
    """Finished runs by key; a last line that was cut off is removed."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    if lines and not lines[-1].endswith("\n"):
        write_atomically(file, "".join(lines := lines[:-1]).encode())
    return {record["key"]: record for record in map(json.loads, lines)}


Records = Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
"""By model and change, one for each training seed."""


def nats(records: Records, model: str, change: str, likelihood: str) -> np.ndarray:
    """Of each text, the mean over training seeds, (N,)."""
    return np.mean([record["nats"][likelihood] for record in records[model, change]], axis=0)


def compared(records: Records, change: str, likelihood: str, other: str, length: int) -> str:
    """How many nats a token more the LTM needs than an AR, paired by text: the difference and its 95% interval."""
    tokens_N = [length] * len(a := nats(records, "ltm", change, likelihood))
    found = stats.paired_difference(a, tokens_N, nats(records, "ar", other, "exact"), tokens_N)
    return f"{found.value:+.3f} [{found.ci95[0]:+.3f}, {found.ci95[1]:+.3f}]" if found.ci95 else f"{found.value:+.3f}"


def per_token(records: Records, model: str, change: str, likelihood: str, length: int) -> float:
    """Nats a token, the mean over texts and training seeds."""
    return -float(np.mean(nats(records, model, change, likelihood))) / length


def spread(records: Records, model: str, change: str, likelihood: str, length: int) -> str:
    """Nats a token: the mean over training seeds and, of several, their standard deviation."""
    values = [-np.mean(record["nats"][likelihood]) / length for record in records[model, change]]
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def reach(window: str, layers: int, length: int) -> int:
    """How many symbols a position of a causal stack sees before its own."""
    return length - 1 if window == "none" else min(length - 1, layers * (int(window) - 1) + 1)


def window_of(change: str) -> str:
    """The attention window of a run."""
    return change.partition("=")[2] if change.startswith("decoder.window=") else "4"


def headline(records: Records, source: Topics, texts: int) -> Table:
    """The base: what is true, what a window allows, and what the models reach."""
    L = source.length
    true_N = source.log_likelihood(source.sample(texts, seed=0, purpose="latent gain"))
    least = source.windowed_entropy(reach("4", 2, L))
    seeds = len(records["ltm", BASE])
    table = Table(title=f"{source.spec}: {texts} fresh texts of {L} tokens, {seeds} training seeds", box=box.MARKDOWN)
    for column in ("", "Tokens", "FLOPs", "Nats/token", "LTM − AR", "LTM − AR, equal FLOPs"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("source, entropy", "", "", f"{source.entropy().nats_per_text / L:.3f}", "", "")
    table.add_row("source, these texts", "", "", f"{-float(true_N.mean()) / L:.3f}", "", "")
    table.add_row("least at window 4", "", "", f"{least.nats_per_text / L:.3f} ± {least.stderr / L:.3f}", "", "")
    for change in (BASE, EQUAL_FLOPS):
        if ("ar", change) in records:
            one = records["ar", change][0]
            table.add_row(
                f"AR, {change or 'equal tokens'}",
                f"{one['tokens'] / 1e6:.2f}M",
                f"{one['flops']:.1e}",
                spread(records, "ar", change, "exact", L),
                "",
                "",
            )
    one = records["ltm", BASE][0]
    for likelihood, name in (("elbo", "LTM, ELBO"), ("importance_bound", "LTM, importance bound")):
        table.add_row(
            name,
            f"{one['tokens'] / 1e6:.2f}M",
            f"{one['flops']:.1e}",
            spread(records, "ltm", BASE, likelihood, L),
            compared(records, BASE, likelihood, BASE, L),
            compared(records, BASE, likelihood, EQUAL_FLOPS, L) if ("ar", EQUAL_FLOPS) in records else "",
        )
    return table


def sweep(records: Records, source: Topics) -> Table:
    """One setting at a time; the difference is of the importance bound to the AR of the same window, equal tokens."""
    L = source.length
    table = Table(title="One setting at a time", box=box.MARKDOWN)
    for column in ("LTM", "ELBO", "Importance", "LTM − AR", "KL", "I(x; z)", "Active", "FLOPs/token"):
        table.add_column(column, justify="left" if column == "LTM" else "right")
    for (model, change), found in records.items():
        if model != "ltm":
            continue
        other = change if change.startswith("decoder.window=") else BASE
        table.add_row(
            change or "base",
            spread(records, "ltm", change, "elbo", L),
            spread(records, "ltm", change, "importance_bound", L),
            compared(records, change, "importance_bound", other, L) if ("ar", other) in records else "",
            *(f"{np.mean([r[name] for r in found]):.1f}" for name in ("kl", "mutual_information")),
            f"{np.mean([r['active_units'] for r in found]):.0f}/{found[0]['units']}",
            f"{found[0]['flops_per_token'] / 1e6:.1f}M",
        )
    return table


def draw(records: Records, source: Topics, file: Path) -> str:
    """A figure of the sweep, as SVG; a sentence that says where, or why not."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no figure without matplotlib: pip install 'latent-thought-bench[plots]'"
    base = to_dict(configured(Run(model="ltm", change=BASE, seed=0), source, "1M", 1.0)[1])
    L, shown = source.length, [f for f in FACTORS if any(change.startswith(f"{f}=") for _, change in records)]
    if not shown:
        return "no figure: no setting has been changed"
    figure = Figure(figsize=(2.6 * len(shown), 5.2), layout="constrained")
    panels = figure.subplots(2, len(shown), squeeze=False, sharey="row", sharex="col")
    for (upper, lower), factor in zip(panels.T, shown, strict=True):
        own: Any = base
        for part in factor.split("."):
            own = own[part]
        values = sorted({str(own), *FACTORS[factor]}, key=lambda v: float("inf" if v == "none" else v))
        changes = {v: BASE if v == str(own) else f"{factor}={v}" for v in values}
        at = [v for v in values if ("ltm", changes[v]) in records]
        for likelihood, label in (("elbo", "LTM, ELBO"), ("importance_bound", "LTM, importance bound")):
            upper.plot(at, [per_token(records, "ltm", changes[v], likelihood, L) for v in at], "o-", ms=4, label=label)
        windows = factor == "decoder.window"
        ar = [per_token(records, "ar", changes[v] if windows else BASE, "exact", L) for v in at]
        upper.plot(at, ar, "k--", label="AR, equal tokens")
        upper.axhline(source.entropy().nats_per_text / L, color="k", lw=1, label="source")
        lower.plot(at, [records["ltm", changes[v]][0]["kl"] for v in at], "o-", ms=4, label="KL, nats a text")
        share = [100 * r["active_units"] / r["units"] for v in at for r in records["ltm", changes[v]][:1]]
        lower.plot(at, share, "s--", ms=4, label="active units, %")
        information = [records["ltm", changes[v]][0]["mutual_information"] for v in at]
        lower.plot(at, information, "^:", ms=4, label="I(x; z), nats a text")
        lower.set_xlabel(factor)
        for axis in (upper, lower):
            axis.grid(alpha=0.3)
    panels[0, 0].set_ylabel("nats a token")
    panels[0, 0].legend(fontsize=7)
    panels[1, 0].legend(fontsize=7)
    figure.suptitle(f"LTM on {source.spec}, valid bounds")
    figure.savefig(file, metadata={"Date": None})
    return f"figure written to {file}"


def main() -> None:
    """Train what is missing, then print the tables."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.latent_gain", description=__doc__)
    factors = (EQUAL_FLOPS, *FACTORS)
    p.add_argument("--only", metavar="FACTORS", help=f"of {', '.join(factors)}; `base` for none; default: all")
    p.add_argument("--source", default="topics", help="topics, with settings if you like: topics:words=32")
    p.add_argument("--tokens", default="400k", help="training tokens of a run; default: 400k")
    p.add_argument("--seeds", type=int, default=3, help="training seeds of the base; default: 3")
    p.add_argument("--texts", type=int, default=256, help="fresh texts to score; default: 256")
    p.add_argument("--output", type=Path, default=Path("runs/latent_gain"), help="default: runs/latent_gain")
    options = p.parse_args()
    source = from_settings(options.source)
    only = factors if options.only is None else tuple(options.only.split(","))
    if not isinstance(source, Topics):
        raise UserError(f"--source {options.source}: expected topics with or without settings")
    for factor in only:
        if factor not in (*factors, "base"):
            raise did_you_mean("factor", factor, (*factors, "base"))
    if options.seeds < 1 or options.texts < 2:
        raise UserError("expected at least 1 seed and 2 texts")
    file = options.output / "results.jsonl"
    done, flops = kept(file), 1.0
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in planned(options.seeds, only):
        name = key(run, source, options, flops)
        if name not in done:
            record = {"key": name, **measured(run, source, options, flops)}
            training_log.append(file, record)
            done[name] = record
        found.setdefault((run.model, run.change), []).append(done[name])
        if (run.model, run.change) == ("ltm", BASE):
            flops = done[name]["flops"]
    console = Console(width=100)
    console.print(headline(found, source, options.texts))
    if len(found) > 2:
        console.print(sweep(found, source))
    print(draw(found, source, options.output / "sweep.svg"))


if __name__ == "__main__":
    raise SystemExit(run_command(main))
