"""One training loop for every model: AdamW, warm-up and cosine, clipping, moving average, accumulation, resume.

The order of data and every noise depend on (seed, sequence index) only, so a resumed run is the unbroken run, bit for
bit on a CPU, and several processes (torchrun) see the batches that one would.
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from ltm import checkpoint
from ltm.api import LanguageModel
from ltm.config import to_dict
from ltm.errors import UserError
from ltm.rng import SequenceRng
from ltm.transformer import set_matmul_dtype

if TYPE_CHECKING:
    from ltm.dataset import TokenDataset
    from ltm.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A recipe. Everything that changes the weights is here and in the model's config.

    Attributes:
        budget: `tokens=50M`, `flops=1e15` (as executed) or `seconds=600`; k, M, B, T are powers of a thousand.
        batch: sequences a forward pass, over all processes; `accumulation` passes make one update.
        lr: peak; rises over the share `warmup` of the budget, then falls as a cosine to `final_lr` times the peak.
        ema: decay of the moving average that is scored, warmed up as min(ema, (1 + n) / (10 + n)); 0 turns it off.
        matmul: dtype of matrix products; parameters, softmax, loss and sums stay in float32.
        checkpoint_seconds: wall time between checkpoints; has no effect on the weights.
    """

    budget: str = "tokens=1M"
    batch: int = 64
    accumulation: int = 1
    lr: float = 4e-4
    final_lr: float = 0.1
    warmup: float = 0.05
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    clip: float = 1.0
    ema: float = 0.999
    matmul: Literal["bfloat16", "float32"] = "bfloat16"
    seed: int = 0
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        parse_budget(self.budget)
        if min(self.batch, self.accumulation) < 1 or self.lr <= 0 or self.clip <= 0:
            raise ValueError("batch and accumulation must be at least 1, lr and clip positive")
        if not (0 <= self.warmup < 1 and 0 <= self.final_lr <= 1 and 0 <= self.ema < 1):
            raise ValueError("warmup and ema must be in [0, 1), final_lr in [0, 1]")

    def lr_at(self, progress: float) -> float:
        """Learning rate when a share `progress` of the budget is spent."""
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - self.warmup) / (1 - self.warmup))))
        return self.lr * (self.final_lr + (1 - self.final_lr) * cosine)


def parse_budget(text: str) -> tuple[str, float]:
    """`tokens=50M` as ("tokens", 5e7). Raises ValueError for anything else."""
    unit, _, amount = text.partition("=")
    scale = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
    try:
        value = float(amount[:-1]) * scale[amount[-1]] if amount[-1:] in scale else float(amount)
    except ValueError:
        value = math.nan
    if unit not in ("tokens", "flops", "seconds") or not 0 < value < math.inf:
        raise ValueError(f"budget {text!r}: expected tokens=50M, flops=1e15 or seconds=600")
    return unit, value


def total_steps(config: TrainConfig, block_length: int, flops_per_token: float) -> int | None:
    """Updates that the budget pays for, at least one; None for a budget in seconds."""
    unit, amount = parse_budget(config.budget)
    if unit == "seconds":
        return None
    tokens = amount if unit == "tokens" else amount / flops_per_token
    return max(1, round(tokens / (config.batch * config.accumulation * block_length)))


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
        """Fresh optimiser; matrices decay, norms and other vectors do not."""
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim <= 1]
        optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=config.lr,
            betas=(config.beta1, config.beta2),
        )
        average = {k: v.detach().clone() for k, v in model.state_dict().items()} if config.ema else {}
        return cls(model, optimizer, average)

    def state(self) -> dict[str, Tensor]:
        """Everything but the scored weights, as named tensors."""
        tensors = {f"weights.{k}": v for k, v in self.model.state_dict().items()} if self.average else {}
        for name, p in self.model.named_parameters():
            for key, value in self.optimizer.state.get(p, {}).items():
                tensors[f"adam.{key}.{name}"] = value
        tensors["run"] = torch.tensor([self.step, self.seconds], dtype=torch.float64)
        return tensors

    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Take over the tensors of a checkpoint."""
        raw = {k.removeprefix("weights."): v for k, v in state.items() if k.startswith("weights.")}
        self.model.load_state_dict(raw or dict(weights))
        for name, value in weights.items():
            if name in self.average:
                self.average[name].copy_(value)
        for name, p in self.model.named_parameters():
            found = {k.split(".")[1]: v for k, v in state.items() if k.startswith("adam.") and k.split(".", 2)[2] == name}
            if found:
                self.optimizer.state[p] = {k: v.clone() if k == "step" else v.to(p.device) for k, v in found.items()}
        self.step, self.seconds = int(state["run"][0]), float(state["run"][1])

    def scored(self) -> dict[str, Tensor]:
        """The weights that are evaluated."""
        return self.average or {k: v.detach() for k, v in self.model.state_dict().items()}


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Let the update in hand finish on the first Ctrl-C or SIGTERM; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals are somebody else's
        before = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def update(run: Run, data: TokenDataset, config: TrainConfig, progress: float) -> dict[str, float]:
    """One optimiser step over `accumulation` batches; returns numbers for the log.

    Raises:
        UserError: the loss or the gradient is not finite; the weights are then those of the step before.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = next(run.model.parameters()).device
    run.optimizer.zero_grad(set_to_none=True)
    log: dict[str, float] = {}
    for micro in range(config.accumulation):
        first = (run.step * config.accumulation + micro) * config.batch
        tokens_BL, indices = data.batch(first, config.batch, seed=config.seed)
        mine = slice(rank, None, world)
        rng = SequenceRng(config.seed, indices[mine])
        loss = run.model.training_loss(tokens_BL[mine].to(device), rng=rng, progress=progress)
        (loss.value / (config.accumulation * world)).backward()
        for name, value in {"loss": float(loss.value.detach()), **loss.metrics}.items():
            log[name] = log.get(name, 0.0) + value / config.accumulation
    if world > 1:
        for p in run.model.parameters():
            dist.all_reduce(p.grad)
        summed = torch.tensor(list(log.values()), dtype=torch.float64, device=device)
        dist.all_reduce(summed)
        log = dict(zip(log, (summed / world).tolist(), strict=True))
    log["gradient_norm"] = float(torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.clip))
    if not (math.isfinite(log["loss"]) and math.isfinite(log["gradient_norm"])):
        raise UserError(
            f"step {run.step + 1}: loss {log['loss']}, gradient norm {log['gradient_norm']}. "
            "Earlier checkpoints are kept; start again with a lower learning rate, such as "
            f"--set training.lr={config.lr / 2:g} --fresh"
        )
    log["lr"] = config.lr_at(progress)
    for group in run.optimizer.param_groups:
        group["lr"] = log["lr"]
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
) -> Path:
    """Train to the end of the budget, or go on with the run that `directory` holds; returns the final step folder.

    Args:
        provenance: corpus, data fingerprint and packing, recorded in the checkpoint and compared on resume.
        report: called after each update with (step, total steps or None, progress, log).

    Raises:
        UserError: the directory holds another run; the loss is not finite.
        KeyboardInterrupt: after Ctrl-C, with the update in hand finished and saved.
    """
    cost = model.cost(model.block_length)
    total, (unit, amount) = total_steps(config, model.block_length, cost.train_flops_per_token), parse_budget(config.budget)
    tokens_a_step = config.batch * config.accumulation * model.block_length
    set_matmul_dtype(model, getattr(torch, config.matmul))
    run = Run.new(model, config)
    recipe = {**to_dict(config), "checkpoint_seconds": None, **provenance}
    if checkpoint.steps(directory):
        folder, info = checkpoint.read_info(directory)
        refuse_other_run(directory, info, model, recipe)
        if info["training"]["complete"]:
            return folder
        run.restore(checkpoint.load_weights(folder), checkpoint.load_state(folder))
    lead = not dist.is_initialized() or dist.get_rank() == 0
    started, saved = time.monotonic() - run.seconds, time.monotonic()

    def save(complete: bool) -> Path:
        training = {
            **provenance,
            "recipe": recipe,
            "steps": run.step,
            "tokens": run.step * tokens_a_step,
            "flops": run.step * tokens_a_step * cost.train_flops_per_token,
            "paper_flops": run.step * tokens_a_step * cost.paper_train_flops_per_token,
            "seconds": round(run.seconds, 3),
            "seed": config.seed,
            "device": device_name(next(model.parameters()).device),
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

    log_path = directory / "log.jsonl"
    if lead:
        directory.mkdir(parents=True, exist_ok=True)
        keep_log_lines(log_path, run.step)
    with deferred_interrupts() as interrupted:
        while True:
            progress = run.step / total if total else min(1.0, (time.monotonic() - started) / amount)
            if progress >= 1:
                break
            if interrupted():
                if lead:
                    save(complete=False)
                raise KeyboardInterrupt(f"step {run.step} is saved; issue the same command again to go on")
            log = update(run, data, config, progress)
            run.seconds = time.monotonic() - started
            if lead:
                line = {"step": run.step, "tokens": run.step * tokens_a_step, "seconds": round(run.seconds, 3), **log}
                with log_path.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                if time.monotonic() - saved > config.checkpoint_seconds:
                    save(complete=False)
                    saved = time.monotonic()
            report(run.step, total, run.step / total if total else min(1.0, run.seconds / amount), line if lead else log)
    if unit == "seconds" and run.step == 0:
        raise UserError(f"budget {config.budget} ended before the first update; give more seconds")
    return save(complete=True) if lead else directory


def refuse_other_run(directory: Path, info: Mapping[str, Any], model: LanguageModel, recipe: Mapping[str, Any]) -> None:
    """Raise UserError unless the checkpoint in `directory` was made by this very model config and recipe."""
    theirs, ours = {**info["training"]["recipe"], "model": info["config"]}, {**recipe, "model": to_dict(model.config)}
    for key in sorted(theirs.keys() | ours.keys()):
        if theirs.get(key) != ours.get(key):
            raise UserError(
                f"{directory} holds another run: its {key} is {theirs.get(key)!r}, this command's {ours.get(key)!r}. "
                "Add --fresh to replace it, or --output to write elsewhere"
            )


def keep_log_lines(path: Path, step: int) -> None:
    """Drop log lines after `step`, and a torn last one: the resumed run will write them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except ValueError:
            break
        kept.append(line)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text("".join(f"{line}\n" for line in kept))
    os.replace(temporary, path)


def device_name(device: torch.device) -> str:
    """What the numbers were made on, for the record."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)"
