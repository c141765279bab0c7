"""Train models that count instead of following gradients, on the batches that `ltm.training.loop` would feed.

It takes seconds to minutes, so nothing is saved before the end: an interrupted run starts over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ltm.api import LanguageModel
from ltm.config import settled, to_dict
from ltm.devices import device_name
from ltm.errors import UserError
from ltm.processes import world_size
from ltm.progress import count, say
from ltm.training import checkpoint
from ltm.training.config import TrainConfig, parse_budget, total_steps
from ltm.training.resuming import NO_EFFECT, grown, refuse_other_run

if TYPE_CHECKING:
    from ltm.data.token_dataset import TokenDataset
    from ltm.tokenizer import Tokenizer


def train_by_counting(
    name: str,
    model: LanguageModel,
    data: TokenDataset,
    tokenizer: Tokenizer,
    config: TrainConfig,
    directory: Path,
    *,
    provenance: Mapping[str, Any],
    report: Callable[[int, int | None, float, Mapping[str, float]], None] = lambda *_: None,
    extend: bool = False,
) -> Path:
    """Count to the end of the budget, or of the text: a second pass would add nothing; returns the step folder.

    Arguments as for `ltm.training.loop.train`; of the recipe, budget, batch, accumulation and seed have an effect.

    Raises:
        UserError: the directory holds another run; several processes; nothing can be written.
        KeyboardInterrupt: after Ctrl-C, with nothing saved.
    """
    if world_size() > 1:
        raise UserError(f"{name} is counted by one process; start it without torchrun")
    folder, info = checkpoint.read_info(directory) if checkpoint.steps(directory) else (None, {})
    config = settled(config, "float32", info.get("training", {}).get("recipe"))  # of no effect: nothing is multiplied
    recipe = {k: v for k, v in {**to_dict(config), **provenance}.items() if k not in NO_EFFECT}
    cost = model.cost(model.block_length)
    if folder:
        larger = grown(info, config, total_steps(config, model.block_length, cost.train_flops_per_token))
        refuse_other_run(directory, info, model, recipe, but=("budget",) if larger else ())
        if not larger:
            checkpoint.drop(directory, keep=1)  # what a run that was killed after its last step was about to do
            return folder
        say(f"{name}: counted anew for the larger budget, which gives what a fresh run would")
    started = time.monotonic()
    try:
        steps, blocks = _count(model, data, config, cost.train_flops_per_token, report)
        model.finish()
    except KeyboardInterrupt as interrupt:
        raise type(interrupt)("nothing is kept of a count half done; the same command starts over") from None
    tokens = blocks * model.block_length
    training = {
        **provenance,
        "recipe": recipe,
        "steps": steps,
        "tokens": tokens,
        "flops": tokens * cost.train_flops_per_token,
        "paper_flops": tokens * cost.paper_train_flops_per_token,
        "seconds": round(time.monotonic() - started, 3),
        "seed": config.seed,
        "device": device_name(torch.device("cpu")),
        "dtype": "int64",
        "complete": True,
    }
    weights = model.state_dict()
    return checkpoint.save(
        directory, steps, name=name, model=model, tokenizer=tokenizer, weights=weights, state={}, training=training
    )


def _count(
    model: LanguageModel,
    data: TokenDataset,
    config: TrainConfig,
    flops_per_token: float,
    report: Callable[[int, int | None, float, Mapping[str, float]], None],
) -> tuple[int, int]:
    """Feed the batches; return the numbers of batches and of blocks in them."""
    size = config.batch * config.accumulation
    steps, blocks = total_steps(config, model.block_length, flops_per_token), data.blocks
    if steps is not None and steps * size > blocks:
        say(f"the budget is more than the text has: each of its {count(blocks, 'blocks')} is counted once")
    elif steps is not None:
        blocks = steps * size
    unit, amount = parse_budget(config.budget)
    started, step, fed = time.monotonic(), 0, 0
    while fed < blocks and not (step and unit == "seconds" and time.monotonic() - started > amount):
        tokens_BL, indices = data.batch(fed, min(size, blocks - fed), seed=config.seed)
        model.count(tokens_BL)
        fed += len(indices)
        step += 1
        report(step, -(-blocks // size), fed / blocks, {})
    return step, fed
