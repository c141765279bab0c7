"""Measure the speed of generation: `python -m benchmarks.generation`.

Causal models are timed as the library runs them, with a KV cache, and in a plain loop without one: for each token a
pass of the same network over everything so far, `logits = model(text)[:, -1]`, then `torch.multinomial`. As in nanoGPT
only the last position meets the head. Its steps get longer with the text, so a few of them are timed, spread evenly,
and the time of all is estimated from these. Diffusion models fill one canvas with each of their samplers.

Weights and vocabulary are those of an untrained preset, with room for the tokens: speed does not depend on what a model
has learned. Shapes: B texts, L positions so far, BOS included, V vocabulary.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from baselines.ar import Autoregressive
from baselines.diffusion.bd3lm import BD3LM
from baselines.diffusion.unmasking import CanvasModel
from benchmarks.fast_step import now
from benchmarks.machine import machine, tiny_presets
from ltm import registry
from ltm.api import LanguageModel, Sampling
from ltm.devices import choose_device, device_name
from ltm.errors import UserError, run_command
from ltm.files import write_atomically
from ltm.latent.base import LatentModel
from ltm.progress import say
from ltm.rng import SequenceRng

LONG_ENOUGH = 20.0
"""Seconds after which a measurement is not repeated once more."""

Logits = Callable[[Tensor], Tensor]
"""Maps texts so far (B, L), BOS included, to logits (B, V - 1) of the next token."""


def models(name: str, tokens: int) -> list[tuple[str, LanguageModel]]:
    """Return a preset's model, untrained and with room for `tokens`; for diffusion one for each sampler, by name."""
    cls, preset = registry.preset(name)
    size = preset.tokenizer.removeprefix("bpe-")
    vocab_size = {"gpt2": 50257, "bytes": 256}.get(size) or int(size)
    config = dataclasses.replace(preset.config, vocab_size=vocab_size + 1)
    if not hasattr(config, "decoder"):
        raise UserError(f"{name} has no network to time; expected one of {', '.join(tiny_presets())}")
    if issubclass(cls, CanvasModel):
        variants = {}
        for sampler in typing.get_args(typing.get_type_hints(type(config))["sampler"]):
            try:
                variants[sampler] = dataclasses.replace(config, sampler=sampler)
            except ValueError:  # one that this schedule does not support
                continue
    else:
        S = getattr(config, "block_size", 1)
        positions = max(config.decoder.max_length, -(-(tokens + 1) // S) * S)
        decoder = dataclasses.replace(config.decoder, max_length=positions)
        variants = {"KV cache": dataclasses.replace(config, decoder=decoder)}
    found = []
    for way, variant in variants.items():
        torch.manual_seed(0)
        found.append((way, cls(variant).eval().requires_grad_(False)))
    return found


def plain_logits(model: LanguageModel, batch: int) -> Logits | None:
    """Return the pass of the plain loop; None if the model is not causal.

    Block diffusion sees masks up to the end of the block and reveals them from left to right; any order costs the same.
    """
    if isinstance(model, BD3LM):
        stack, S = model.decoder, model.config.block_size

        def of_blocks(text_BL: Tensor) -> Tensor:
            canvas_BL = F.pad(text_BL, (0, S - text_BL.shape[1] % S), value=model.mask_id)
            block_L = torch.arange(canvas_BL.shape[1], device=canvas_BL.device) // S
            h_BLD, _ = stack.run(stack.embed(canvas_BL), visible=block_L[:, None] >= block_L)
            return h_BLD[:, text_BL.shape[1]] @ stack.head().T

        return of_blocks
    if not isinstance(model, Autoregressive | LatentModel):
        return None
    decoder, latents = model.decoder, None
    if isinstance(model, LatentModel):
        nothing = torch.empty(batch, 0, dtype=torch.int64, device=model.device)
        z = model.draw_latents(nothing, SequenceRng(0, range(batch)), 0)
        latents = model.latent_keys_values(decoder, z)
    return lambda text_BL: decoder(text_BL, latents)[:, -1] @ decoder.head().T


@torch.no_grad()
def plain_loop(logits: Logits, text_BL: Tensor, tokens: int) -> Tensor:
    """Return the texts (B, L) with `tokens` more, drawn one after the other, each after a pass over all before it."""
    for _ in range(tokens):
        drawn_B1 = torch.multinomial(logits(text_BL).softmax(-1), 1)
        text_BL = torch.cat([text_BL, drawn_B1], 1)
    return text_BL


def plain_seconds(model: LanguageModel, logits: Logits, *, batch: int, tokens: int, steps: int) -> float:
    """Estimate the seconds of the whole plain loop from `steps` of its steps, at the middle of equal parts."""
    steps, total = min(steps, tokens), 0.0
    text_BL = torch.randint(model.vocab_size - 1, (batch, tokens), device=model.device)
    text_BL[:, 0] = model.vocab_size - 1
    for step in range(steps):
        length = 1 + int((step + 0.5) * tokens / steps)
        total += _seconds(lambda length=length: plain_loop(logits, text_BL[:, :length], 1), model.device)  # type: ignore[misc]
    return total * tokens / steps


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    began = now(device)
    work()
    return now(device) - began


def speed(model: LanguageModel, *, tokens: int, batch: int, plain_steps: int, repeats: int) -> dict[str, Any]:
    """Return tokens/s and evaluations per token, and for causal models tokens/s of the plain loop; medians, in turn."""
    new = min(tokens, model.block_length) if isinstance(model, CanvasModel) else tokens
    logits = plain_logits(model, batch)
    evaluations = 0.0

    def generate(tokens: int = new) -> None:
        nonlocal evaluations
        prompts: list[list[int]] = [[]] * batch
        noise = SequenceRng(0, range(batch))
        found = model.generate(prompts, max_new_tokens=tokens, sampling=Sampling(), rng=noise)
        evaluations = sum(found.network_evaluations) / (batch * tokens)

    generate(min(2, new))
    seconds: list[float] = []
    plain: list[float] = []
    while not seconds or (len(seconds) < repeats and sum(seconds) < LONG_ENOUGH):
        seconds.append(_seconds(generate, model.device))
        if logits:
            plain.append(plain_seconds(model, logits, batch=batch, tokens=new, steps=plain_steps))
    found = {
        "tokens": new,
        "tokens_per_second": batch * new / statistics.median(seconds),
        "evaluations_per_token": evaluations,
    }
    if plain:
        found["plain_tokens_per_second"] = batch * new / statistics.median(plain)
        found["speed_up"] = statistics.median(plain) / statistics.median(seconds)
    return found


def show(results: dict[str, Any]) -> None:
    """Print the table."""
    settings, facts = results["settings"], results["machine"]
    title = f"Generation of {settings['batch']} texts at once, {settings['dtype']}, {settings['device']}"
    table = Table(title=f"{title}, torch {facts['torch']}")
    for column in ("model", "sampler", "tokens", "tokens/s", "evaluations per token", "plain tokens/s", "speed-up"):
        table.add_column(column, justify="left" if column in ("model", "sampler") else "right")
    for row in results["rows"]:
        plain = [f"{row['plain_tokens_per_second']:,.1f}", f"{row['speed_up']:.1f}x"] if "speed_up" in row else ["", ""]
        speeds = [f"{row['tokens_per_second']:,.1f}", f"{row['evaluations_per_token']:.2f}"]
        table.add_row(row["model"], row["sampler"], f"{row['tokens']:,}", *speeds, *plain)
    Console(width=100).print(table)
    print(f"Tokens are those of each text. Plain loops are estimated from {settings['plain_steps']} of their steps.")


def main() -> None:
    """Measure, print the table and, if asked, write the results as JSON."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.generation", description=__doc__)
    p.add_argument("--preset", nargs="+", metavar="NAME", help="default: all tiny presets with a network")
    p.add_argument("--tokens", type=int, default=1024, help="new tokens of each text; default: 1024")
    p.add_argument("--batch", type=int, default=8, help="texts at once; default: 8")
    p.add_argument("--plain-steps", type=int, default=16, help="steps of the plain loop to time; default: 16")
    p.add_argument("--repeats", type=int, default=3, help=f"at most, within {LONG_ENOUGH:.0f} seconds; default: 3")
    p.add_argument("--device", default="cpu")
    p.add_argument("--json", metavar="FILE", type=Path, help="also write the results to this file")
    options = p.parse_args()
    if min(options.tokens, options.batch, options.plain_steps, options.repeats) < 1:
        raise UserError("expected at least 1 token, text, step and repetition")
    device, rows = choose_device(options.device), []
    for name in options.preset or tiny_presets():
        for sampler, model in models(name, options.tokens):
            say(f"{name}, {sampler} ...")
            measured = speed(
                model.to(device),
                tokens=options.tokens,
                batch=options.batch,
                plain_steps=options.plain_steps,
                repeats=options.repeats,
            )
            rows.append({"model": name, "sampler": sampler, **measured})
    settings = {
        "batch": options.batch,
        "plain_steps": min(options.plain_steps, options.tokens),
        "dtype": "float32",
        "device": device_name(device),
    }
    results = {"machine": machine(), "settings": settings, "rows": rows}
    show(results)
    if options.json:
        write_atomically(options.json, (json.dumps(results, indent=1) + "\n").encode())
        print(f"written to {options.json}")


if __name__ == "__main__":
    raise SystemExit(run_command(main))
