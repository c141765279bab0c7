"""One training loop for every model: AdamW, warm-up and cosine, clipping, moving average, accumulation, resume.

The order of data and all noise depend only on (seed, sequence index), so a resumed run equals the unbroken one, bit for
bit on a CPU, and several processes (torchrun) see the batches that one would.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ltm.api import LanguageModel
from ltm.config import AUTO, leaves, settled, to_dict
from ltm.devices import device_name, threads_for
from ltm.errors import UserError, first_line, out_of_memory
from ltm.files import check_held
from ltm.nn.transformer import Stack, set_matmul_dtype
from ltm.processes import agreed, is_lead, largest, lost, rank, world_size
from ltm.progress import say
from ltm.rng import SequenceRng
from ltm.training import checkpoint
from ltm.training import log as training_log
from ltm.training.config import TrainConfig, parse_budget, total_steps
from ltm.training.interrupts import deferred_interrupts, stopped
from ltm.training.resuming import NO_EFFECT, extended, grown, recorded_recipe, refuse_other_run, too_large
from ltm.training.saving import BackgroundSaver, copied
from ltm.training.state import Run
from ltm.training.trackers import tracked

if TYPE_CHECKING:
    from ltm.data.token_dataset import TokenDataset
    from ltm.tokenizer import Tokenizer


def update(run: Run, data: TokenDataset, config: TrainConfig, *, progress: float, lr: float) -> dict[str, float]:
    """Take one optimiser step with learning rate `lr` over `accumulation` batches; return numbers for the log.

    Raises:
        UserError: a number for the log is not finite; the weights are then those of the step before.
    """
    world, device = world_size(), run.model.device
    run.optimizer.zero_grad(set_to_none=True)
    log: dict[str, float] = {}
    for micro in range(config.accumulation):
        first = (run.step * config.accumulation + micro) * config.batch
        tokens_BL, indices = data.batch(first, config.batch, seed=config.seed)
        mine = slice(rank(), None, world)
        found = run.slow_step.backward(
            tokens_BL[mine].to(device),
            rng=SequenceRng(config.seed, indices[mine]),
            progress=progress,
            parts=config.accumulation * world,
            last=micro == config.accumulation - 1,
        )
        for name, value in found.items():
            log[name] = log.get(name, 0.0) + value / config.accumulation
    if world > 1:
        summed = torch.tensor(list(log.values()), dtype=torch.float64, device=device)
        dist.all_reduce(summed)
        log = dict(zip(log, (summed / world).tolist(), strict=True))
    log["gradient_norm"] = float(torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.clip))
    if not all(map(math.isfinite, log.values())):
        numbers = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in log.items())
        raise UserError(
            f"step {run.step + 1} is not finite: {numbers}. "
            "Earlier checkpoints are kept; start again with a lower learning rate, such as "
            f"--set training.lr={config.lr / 2:g} --fresh"
        )
    log["lr"] = lr
    for group in run.optimizer.param_groups:
        group["lr"] = log["lr"] * group["rate"]
    run.optimizer.step()
    run.step += 1
    if run.average:
        decay = min(config.ema, (1 + run.step) / (10 + run.step))
        with torch.no_grad():
            for name, value in run.model.state_dict().items():
                run.average[name].lerp_(value, 1 - decay)
    return log


def train(
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
    keep: int | None = None,
    trackers: Sequence[str] = (),
) -> Path:
    """Train to the end of the budget, or resume the run in `directory`; returns the final step folder.

    Args:
        provenance: corpus, data fingerprint and packing, recorded in the checkpoint and compared on resume.
        report: called after each update with (step, total steps or None, progress, log).
        extend: go on from a finished run of a smaller budget, or with one so extended; the recipe's `extended` says
            so, since a fresh run of the larger budget would have had a higher learning rate.
        keep: how many of the newest step folders stay; by default two, and of a finished run its last.
        trackers: that get the log too; see `ltm.training.trackers`.

    Raises:
        UserError: the directory holds another run, or a finished one and not `extend`; the loss is not finite; nothing
            can be written.
        KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGUSR1, with the current update finished and saved.
    """
    cost = model.cost(model.block_length)
    total = total_steps(config, model.block_length, cost.train_flops_per_token)
    unit, amount = parse_budget(config.budget)
    device = model.device
    tokens_per_step = config.batch * config.accumulation * model.block_length
    folder, info = checkpoint.read_info(directory) if checkpoint.steps(directory) else (None, {})
    config, model.config = settle(model, config, info)
    set_matmul_dtype(model, getattr(torch, config.matmul))
    run = Run.new(model, config)
    recipe = {k: v for k, v in {**to_dict(config), **provenance}.items() if k not in NO_EFFECT}
    if folder:
        if extend and (before := recorded_recipe(directory, info).get("extended")):
            recipe["extended"] = before
        if grown(info, config, total):
            refuse_other_run(directory, info, model, recipe, but=("budget", "extended"))
            recipe["extended"] = extended(directory, info, config, extend=extend)
            run.restart(checkpoint.load_weights(folder), info["training"])
        else:
            refuse_other_run(directory, info, model, recipe)
            if info["training"].get("complete"):
                if is_lead():
                    # What the run was about to do, if it was killed after its end.
                    checkpoint.drop(directory, keep=keep or 1)
                return folder
            try:
                run.restore(checkpoint.load_weights(folder), checkpoint.load_state(folder))
            except UserError as error:
                raise UserError(f"cannot go on from {folder}: {error}") from error
    lead = is_lead()
    started, saved = time.monotonic() - run.seconds, time.monotonic()

    def saving(complete: bool, tensors: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]) -> Callable[[], Path]:
        """What writes a checkpoint of this moment, of `tensors` of the model's own."""
        training = {
            **provenance,
            "recipe": recipe,
            "steps": run.step,
            "tokens": run.step * tokens_per_step,
            "flops": run.step * tokens_per_step * cost.train_flops_per_token,
            "paper_flops": run.step * tokens_per_step * cost.paper_train_flops_per_token,
            "seconds": round(run.seconds, 3),
            "seed": config.seed,
            "device": device_name(device),
            "dtype": config.matmul,
            "complete": complete,
        }
        state = {} if complete else run.state()
        return functools.partial(
            checkpoint.save,
            directory,
            run.step,
            name=name,
            model=model,
            tokenizer=tokenizer,
            weights=tensors(run.scored()),
            state=tensors(state),
            training=training,
            keep=keep or (1 if complete else 2),
        )

    def save(complete: bool) -> Path:
        saver.wait()
        return saving(complete, dict)()

    log_path = directory / training_log.FILE
    if lead:
        directory.mkdir(parents=True, exist_ok=True)
        training_log.keep(log_path, run.step)
    stack = _stack(model)
    elements = config.batch * model.block_length * (stack.config.width if stack else 2**15)
    settings = leaves({**recipe, "model": to_dict(model.config)})
    following = tracked(trackers if lead else (), directory, run=name, step=run.step, settings=settings)
    with (
        threads_for(elements),
        deferred_interrupts() as interrupted,
        BackgroundSaver() as saver,
        following as track,
    ):
        while True:
            progress = run.step / total if total else min(1.0, (time.monotonic() - started) / amount)
            try:
                # Clocks differ, and signals reach each process at its own time, or some alone.
                progress, stop = largest([progress if lead else 0.0, float(interrupted())], device)
                if progress >= 1:
                    break
                if stop:
                    if lead:
                        save(complete=False)
                    raise stopped(int(stop), run.step)
                # The learning rate at the end of the update, so that the first one already moves the weights.
                lr = config.lr_at((run.step + 1) / total if total else progress)
                log = update(run, data, config, progress=progress, lr=lr)
            except (RuntimeError, MemoryError) as error:
                if out_of_memory(error):
                    raise too_large(config, run.step + 1, error) from error
                if not lost(error):
                    raise
                kept = f"what {directory} holds is kept"
                if lead and run.step:
                    save(complete=False)  # of the step before: all that processes exchange comes before the optimiser
                    kept = f"step {run.step} is saved"
                raise UserError(
                    f"another process of this run has gone, in step {run.step + 1} ({first_line(error)}); {kept}: "
                    "issue the same command again to go on, with any number of processes that divides training.batch"
                ) from error
            run.seconds = time.monotonic() - started
            if lead:
                line = {"step": run.step, "tokens": run.step * tokens_per_step, "seconds": round(run.seconds, 3), **log}
                check_held(directory / checkpoint.LOCK)
                training_log.append(log_path, line)
                track(line)
                saver.check()
                if time.monotonic() - saved > config.checkpoint_seconds:
                    saver.start(saving(False, copied))
                    saved = time.monotonic()
            report(run.step, total, run.step / total if total else min(1.0, run.seconds / amount), log)
        if unit == "seconds" and run.step == 0:
            raise UserError(f"budget {config.budget} ended before the first update; give more seconds")
        return save(complete=True) if lead else directory


def settle(model: LanguageModel, config: TrainConfig, info: Mapping[str, Any]) -> tuple[TrainConfig, Any]:
    """Replace `auto` in recipe and model config by the dtypes that the run began with, or by the fastest here.

    Args:
        info: `model.json` of the run to resume; empty for a new one.
    """
    stack = _stack(model)
    fast = float(stack is not None and stack.matmul_dtype(AUTO) == torch.bfloat16)
    (fast,) = agreed([fast], model.device)  # processes may run on machines of different kinds
    choice = "bfloat16" if fast else "float32"
    recipe = settled(config, choice, info.get("training", {}).get("recipe"))
    model_config = settled(model.config, choice, info.get("config"))
    if (
        is_lead()
        and info
        and config.matmul == AUTO
        and not info["training"].get("complete")
        and recipe.matmul != choice
    ):
        say(
            f"this run began with matrix products in {recipe.matmul} and goes on with them, though {choice} is faster "
            "here; for a run of its own add --fresh, or --output to write elsewhere"
        )
    return recipe, model_config


def _stack(model: LanguageModel) -> Stack | None:
    return next((module for module in model.modules() if isinstance(module, Stack)), None)
