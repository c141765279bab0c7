"""One training loop for every model: AdamW, warm-up and cosine, clipping, moving average, accumulation, resume.

The order of data and all noise depend only on (seed, sequence index), so a resumed run equals the unbroken one, bit for
bit on a CPU, and several processes (torchrun) see the batches that one would.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ltm.api import LanguageModel
from ltm.config import AUTO, settled, to_dict
from ltm.devices import device_name, threads_for
from ltm.errors import UserError
from ltm.files import check_held
from ltm.nn.transformer import Stack, set_matmul_dtype
from ltm.progress import say
from ltm.rng import SequenceRng
from ltm.training import checkpoint
from ltm.training import log as training_log
from ltm.training.config import TrainConfig, parse_budget, total_steps
from ltm.training.processes import agreed, is_lead, rank, world_size
from ltm.training.resuming import NO_EFFECT, extended, grown, recorded_recipe, refuse_other_run
from ltm.training.weights import check_alike

if TYPE_CHECKING:
    from ltm.data.token_dataset import TokenDataset
    from ltm.tokenizer import Tokenizer


@dataclass(slots=True)
class Run:
    """The state of a run between two updates; what a checkpoint holds."""

    model: LanguageModel
    optimizer: torch.optim.AdamW
    average: dict[str, Tensor]
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def new(cls, model: LanguageModel, config: TrainConfig) -> Run:
        """Start with a fresh optimiser; weight decay is for matrices, not for norms and other vectors."""
        groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
        for name, p in model.named_parameters():
            groups.setdefault((config.weight_decay if p.ndim > 1 else 0.0, model.rate_of(name)), []).append(p)
        optimizer = torch.optim.AdamW(
            [{"params": own, "weight_decay": decay, "rate": rate} for (decay, rate), own in groups.items()],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            fused=True,
        )
        average = {k: v.detach().clone() for k, v in model.state_dict().items()} if config.ema else {}
        return cls(model, optimizer, average)

    def state(self) -> dict[str, Tensor]:
        """Everything except the scored weights, as named tensors."""
        tensors = {f"weights.{k}": v for k, v in self.model.state_dict().items()} if self.average else {}
        for name, p in self.model.named_parameters():
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"adam.{key}.{name}"] = value
        tensors["run"] = torch.tensor([self.step, self.seconds], dtype=torch.float64)
        return tensors

    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Restore the state from the tensors of a checkpoint.

        Raises:
            UserError: they are not the tensors of such a run.
        """
        self._check(weights, state)
        raw = {k.removeprefix("weights."): v for k, v in state.items() if k.startswith("weights.")}
        self.model.load_state_dict(raw or dict(weights))
        for name, value in weights.items():
            if name in self.average:
                self.average[name].copy_(value)
        moments: dict[str, dict[str, Tensor]] = {}
        for path, value in state.items():
            if path.startswith("adam."):
                _, key, name = path.split(".", 2)
                moments.setdefault(name, {})[key] = value
        for name, p in self.model.named_parameters():
            if name in moments:
                self.optimizer.state[p] = {key: value.to(p.device) for key, value in moments[name].items()}
        self.step, self.seconds = int(state["run"][0]), float(state["run"][1])

    def _check(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        def shapes(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, tuple[tuple[int, ...], str]]:
            return {prefix + name: (tuple(value.shape), str(value.dtype)) for name, value in tensors.items()}

        own, named = shapes(self.model.state_dict()), dict(self.model.named_parameters())
        check_alike(own, shapes(weights))
        possible = {"run": ((2,), "torch.float64"), **shapes(self.model.state_dict(), "weights.")}
        possible |= shapes({name: torch.tensor(0.0) for name in named}, "adam.step.")
        possible |= {**shapes(named, "adam.exp_avg."), **shapes(named, "adam.exp_avg_sq.")}
        # Parameters without gradients have no moments; without a moving average the scored weights are the raw ones.
        always = {"run", *(f"weights.{name}" for name in own if self.average)}
        check_alike({name: kind for name, kind in possible.items() if name in always or name in state}, shapes(state))
        if not bool(state["run"].isfinite().all()) or float(state["run"].min()) < 0:
            raise UserError(f"the step and seconds of the run are {state['run'].tolist()}; add --fresh to train anew")

    def restart(self, weights: Mapping[str, Tensor], training: Mapping[str, Any]) -> None:
        """Go on from the scored weights of a finished run: with a fresh optimiser, since such a run keeps none."""
        self.model.load_state_dict(dict(weights))
        for name in self.average:
            self.average[name].copy_(weights[name])
        self.step, self.seconds = int(training["steps"]), float(training["seconds"])

    def scored(self) -> dict[str, Tensor]:
        """The weights to evaluate: the moving average if there is one."""
        return self.average or {k: v.detach() for k, v in self.model.state_dict().items()}


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Let the current update finish on the first Ctrl-C or SIGTERM; another, a second or more later, stops at once.

    Not sooner, since torchrun forwards to its processes the Ctrl-C that the terminal has already sent them.
    """
    asked: list[float] = []

    def ask(number: int, frame: Any) -> None:
        if asked and time.monotonic() - asked[0] > 1:
            raise KeyboardInterrupt
        asked.append(time.monotonic())

    try:
        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, which owns the signals
        before = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
        rng = SequenceRng(config.seed, indices[mine])
        loss = run.model.training_loss(tokens_BL[mine].to(device), rng=rng, progress=progress)
        (loss.value / (config.accumulation * world)).backward()
        for name, value in {"loss": float(loss.value.detach()), **loss.metrics}.items():
            log[name] = log.get(name, 0.0) + value / config.accumulation
    if world > 1:
        for p in run.model.parameters():
            if p.grad is not None:
                dist.all_reduce(p.grad)
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
) -> Path:
    """Train to the end of the budget, or resume the run in `directory`; returns the final step folder.

    Args:
        provenance: corpus, data fingerprint and packing, recorded in the checkpoint and compared on resume.
        report: called after each update with (step, total steps or None, progress, log).
        extend: go on from a finished run of a smaller budget, or with one so extended; the recipe's `extended` says
            so, since a fresh run of the larger budget would have had a higher learning rate.

    Raises:
        UserError: the directory holds another run, or a finished one and not `extend`; the loss is not finite; nothing
            can be written.
        KeyboardInterrupt: after Ctrl-C, with the current update finished and saved.
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
                    checkpoint.drop(directory, keep=1)  # what the run was about to do, if it was killed after its end
                return folder
            try:
                run.restore(checkpoint.load_weights(folder), checkpoint.load_state(folder))
            except UserError as error:
                raise UserError(f"cannot go on from {folder}: {error}") from error
    lead = is_lead()
    started, saved = time.monotonic() - run.seconds, time.monotonic()

    def save(complete: bool) -> Path:
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
        return checkpoint.save(
            directory,
            run.step,
            name=name,
            model=model,
            tokenizer=tokenizer,
            weights=run.scored(),
            state=state,
            training=training,
            keep=1 if complete else 2,
        )

    log_path = directory / training_log.FILE
    if lead:
        directory.mkdir(parents=True, exist_ok=True)
        training_log.keep(log_path, run.step)
    stack = _stack(model)
    elements = config.batch * model.block_length * (stack.config.width if stack else 2**15)
    with threads_for(elements), deferred_interrupts() as interrupted:
        while True:
            progress = run.step / total if total else min(1.0, (time.monotonic() - started) / amount)
            progress, stop = agreed([progress, float(interrupted())], device)
            if progress >= 1:
                break
            if stop:
                if lead:
                    save(complete=False)
                raise KeyboardInterrupt(f"step {run.step} is saved; issue the same command again to go on")
            # The learning rate at the end of the update, so that the first one already moves the weights.
            lr = config.lr_at((run.step + 1) / total if total else progress)
            log = update(run, data, config, progress=progress, lr=lr)
            run.seconds = time.monotonic() - started
            if lead:
                line = {"step": run.step, "tokens": run.step * tokens_per_step, "seconds": round(run.seconds, 3), **log}
                check_held(directory / checkpoint.LOCK)
                training_log.append(log_path, line)
                if time.monotonic() - saved > config.checkpoint_seconds:
                    save(complete=False)
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
