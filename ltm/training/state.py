"""The state of a training run between two updates: what a checkpoint holds, and a resumed run goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltm.api import LanguageModel
from ltm.errors import UserError
from ltm.training.config import TrainConfig
from ltm.training.slow_step import SlowStep
from ltm.training.weights import check_alike


@dataclass(slots=True)
class Run:
    """The state of a run between two updates; what a checkpoint holds."""

    model: LanguageModel
    optimizer: torch.optim.AdamW
    average: dict[str, Tensor]
    slow_step: SlowStep
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
        return cls(model, optimizer, average, SlowStep(model))

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
