"""The gradient of the slow step: of the loss of a batch, in the weights, summed over all processes.

Several processes are kept in step by `DistributedDataParallel`, which sums gradients in buckets while the backward
pass is still on its way. Inference per text (the fast steps) sees a copy of the weights without gradients, so it stays
within its process. Gradients that leak from it into the weights (`posterior.leak_gradients`) are in `.grad` before the
backward pass begins, and are summed with its own.
"""

# Annotations stay objects here, since torch compares those of `_summed`.
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ltm.api import LanguageModel
from ltm.processes import world_size
from ltm.rng import SequenceRng


class _Loss(nn.Module):
    """`training_loss` as a forward pass, which is where `DistributedDataParallel` looks for one."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model

    def forward(self, tokens_BL: Tensor, rng: SequenceRng, progress: float) -> tuple[Tensor, dict[str, float]]:
        loss = self.model.training_loss(tokens_BL, rng=rng, progress=progress)
        return loss.value, dict(loss.metrics)


class SlowStep:
    """Computes gradients for one model. The parameters stay the model's own, under their own names."""

    def __init__(self, model: LanguageModel):
        self._loss: nn.Module = _Loss(model)
        if world_size() > 1:
            # A family may leave parameters unused in some steps, and in some processes of a step.
            self._loss = DistributedDataParallel(self._loss, find_unused_parameters=True)
            # A sum instead of the usual mean: leaked gradients are sums over tokens, and no share of a mean.
            self._loss.register_comm_hook(None, _summed)

    def backward(
        self, tokens_BL: Tensor, *, rng: SequenceRng, progress: float, parts: int, last: bool
    ) -> dict[str, float]:
        """Add the gradients of the loss, divided by `parts`, on this process's texts; return its numbers for the log.

        Args:
            last: of the batches that are added up; the processes exchange gradients here alone.
        """
        apart = isinstance(self._loss, DistributedDataParallel) and not last
        with self._loss.no_sync() if apart else nullcontext():  # type: ignore[operator]
            value, metrics = self._loss(tokens_BL, rng, progress)
            (value / parts).backward()
        return {"loss": float(value.detach()), **metrics}


def _summed(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Sum a bucket of gradients over the processes."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])
