"""The recipe of a training run: budget, batch, optimiser, schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ltm.devices import Matmul


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A recipe. Everything that changes the weights is here and in the model's config.

    Attributes:
        budget: `tokens=50M`, `flops=1e15` (as executed) or `seconds=600`; k, M, B, T are powers of a thousand.
        batch: sequences per forward pass, over all processes; `accumulation` passes make one update.
        lr: peak rate; rises over the share `warmup` of the budget, then falls as a cosine to `final_lr` times the peak.
        ema: decay of the moving average that is scored, warmed up as min(ema, (1 + n) / (10 + n)); 0 turns it off.
        matmul: dtype of matrix products; parameters, softmax, loss and sums stay in float32. `auto` is the fastest that
            the device has when the run begins; the run keeps it, wherever it is resumed.
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
    matmul: Matmul = "auto"
    seed: int = 0
    checkpoint_seconds: float = 120.0

    def __post_init__(self) -> None:
        parse_budget(self.budget)
        if min(self.batch, self.accumulation) < 1 or self.lr <= 0 or self.clip <= 0:
            raise ValueError("batch and accumulation must be at least 1, lr and clip positive")
        if not all(0 <= share < 1 for share in (self.warmup, self.ema, self.beta1, self.beta2)):
            raise ValueError("warmup, ema, beta1 and beta2 must be in [0, 1)")
        if not 0 <= self.final_lr <= 1:
            raise ValueError(f"final_lr must be in [0, 1], found {self.final_lr}")
        if min(self.weight_decay, self.checkpoint_seconds) < 0:
            raise ValueError("weight_decay and checkpoint_seconds must be at least 0")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be in [0, 2^63), found {self.seed}")

    def lr_at(self, progress: float) -> float:
        """Learning rate when a share `progress` of the budget is spent."""
        if progress < self.warmup:
            return self.lr * progress / self.warmup
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - self.warmup) / (1 - self.warmup))))
        return self.lr * (self.final_lr + (1 - self.final_lr) * cosine)


def parse_budget(text: str) -> tuple[str, float]:
    """Parse `tokens=50M` into ("tokens", 5e7). Raises ValueError for anything else."""
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
    """The number of updates that the budget pays for, rounded, at least one; None for a budget in seconds."""
    unit, amount = parse_budget(config.budget)
    if unit == "seconds":
        return None
    tokens = amount if unit == "tokens" else amount / flops_per_token
    return max(1, round(tokens / (config.batch * config.accumulation * block_length)))


DEFAULT_CORPUS = "pydocs"
