"""Training over processes: the weights of one process, to the rounding of sums, and what is left when one dies."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ltm import registry, train_cli
from ltm.api import LanguageModel, Loss
from ltm.processes import joined
from ltm.training import checkpoint, loop, slow_step
from ltm.training.config import TrainConfig
from ltm.training.state import Run
from tests.ltm.test_train_cli import command
from tests.support.miniature_runs import L, log, model, run, text
from tests.support.several_processes import called, started, torchrun

TWENTY = TrainConfig(budget=f"tokens={20 * 8 * L}", batch=8, lr=1e-2, warmup=0.25, ema=0.9, matmul="float32")
"""Twenty updates of a batch of eight, or of two of four."""
ACCUMULATED = dataclasses.replace(TWENTY, batch=4, accumulation=2)


def sometimes_used() -> LanguageModel:
    """An AR with two parameters more: one that only some texts use, and one that nothing uses."""

    class Sometimes(registry.model_family("ar")):  # type: ignore[misc]
        def __init__(self, config: Any):
            super().__init__(config)
            self.sometimes = torch.nn.Parameter(torch.ones(3))
            self.never = torch.nn.Parameter(torch.ones(3))

        def training_loss(self, tokens_BL: torch.Tensor, **options: Any) -> Loss:
            loss = super().training_loss(tokens_BL, **options)
            texts = sum(index % 3 == 0 for index in options["rng"].indices)
            extra = (self.sometimes**2).sum() * texts / len(tokens_BL) if texts else 0.0
            return Loss(value=loss.value + extra, metrics=loss.metrics)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Sometimes(registry.model_family("ar").miniature(258, L))


def leaking() -> LanguageModel:
    """An LTM whose fast steps leave their gradients in the weights, as published code does."""
    return latent(leak_gradients=True, noise="reused")


def latent(**changes: Any) -> LanguageModel:
    """An LTM of three fast steps."""
    return model("ltm", posterior=dataclasses.replace(model("ltm").config.posterior, steps=3, **changes))


MODELS: dict[str, Callable[[], LanguageModel]] = {
    **{name: lambda name=name: model(name) for name in ("ar", "mdlm", "bd3lm", "vae")},  # type: ignore[misc]
    "ltm": latent,
    "leaking": leaking,
    "sometimes used": sometimes_used,
}


def until(step: int) -> Callable[..., None]:
    """A report that breaks the run off after an update, as Ctrl-C does."""
    from tests.ltm.training.test_loop import interrupt_at

    return interrupt_at(step)


def trained(name: str, directory: Path, config: TrainConfig, *, stop: int | None = None) -> None:
    """Train in float64, or go on; to the end, or to a step."""
    options = {} if stop is None else {"report": until(stop)}
    family = {"leaking": "ltm", "sometimes used": "ar"}.get(name, name)
    try:
        run(family, directory, directory.parent, config, untrained=MODELS[name]().double(), **options)
    except KeyboardInterrupt:
        assert stop is not None


def in_two(place: str) -> None:
    """What each of two processes does: whole runs, the second halves of some and the first halves of others."""
    reductions: list[int] = []
    summed = slow_step._summed

    @functools.wraps(summed)
    def counted(*given: Any) -> Any:
        reductions.append(1)
        return summed(*given)

    slow_step._summed = counted  # type: ignore[assignment]
    with joined("cpu"):
        for name in MODELS:
            trained(name, Path(place) / name / "two", TWENTY)
            assert len(reductions) == 20
            trained(name, Path(place) / name / "two then one", ACCUMULATED, stop=10)
            assert len(reductions) == 30  # one for each update, not for each batch
            trained(name, Path(place) / name / "one then two", ACCUMULATED)
            reductions.clear()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every model by one process and by two, and by one after the other."""
    place = tmp_path_factory.mktemp("runs")
    for name in MODELS:
        trained(name, place / name / "one", TWENTY)
        trained(name, place / name / "one then two", ACCUMULATED, stop=10)
    called(2, "tests.ltm.training.test_processes:in_two", str(place))
    for name in MODELS:
        trained(name, place / name / "two then one", ACCUMULATED)
    return place


@pytest.mark.parametrize("which", ["two", "one then two", "two then one"])
@pytest.mark.parametrize("name", MODELS)
def test_two_processes_train_the_model_of_one(name: str, which: str, runs: Path) -> None:
    """Also with the batch of eight as two of four, and gone on with at the half by the other number of processes."""
    weights, reference = (checkpoint.load_weights(checkpoint.step_folder(runs / name / w)) for w in (which, "one"))
    assert weights.keys() == reference.keys()
    for parameter, value in reference.items():
        torch.testing.assert_close(weights[parameter], value, rtol=0, atol=1e-9)
    lines = [[line["loss"] for line in log(runs / name / w)] for w in (which, "one")]
    assert len(lines[0]) == 20 and lines[0] == pytest.approx(lines[1], abs=1e-9)
    start = MODELS[name]().state_dict()
    assert max(float((reference[p] - start[p]).abs().max()) for p in start) > 1e-3  # there was something to learn


def test_parameters_that_are_used_sometimes_or_never_are_told_apart(runs: Path) -> None:
    weights = checkpoint.load_weights(checkpoint.step_folder(runs / "sometimes used" / "two"))
    assert bool((weights["never"] == 1).all()) and bool((weights["sometimes"] < 0.99).all())


def test_a_signal_to_one_process_stops_all_with_the_code_for_schedulers(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "train.txt").write_text("".join(text(40)))
    both = started(2, "ltm.train_cli", *command("ar-tiny", tmp_path, tmp_path / "run", updates=100_000))
    until = time.monotonic() + 120
    while not (path := tmp_path / "run" / "log.jsonl").exists() or path.read_text().count("\n") < 3:
        assert time.monotonic() < until and all(process.poll() is None for process in both)
        time.sleep(0.05)
    both[1].send_signal(signal.SIGUSR1)
    printed = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [75, 75], printed
    step = log(tmp_path / "run")[-1]["step"]
    assert all(f"stopped: step {step} is saved" in err for err in printed)
    assert checkpoint.read_info(tmp_path / "run")[1]["training"]["steps"] == step


def dying(victim: str, *arguments: str) -> None:
    """`ltm-train` in which one process is killed in the middle of the fourth update, unless it has been restarted."""
    take = loop.update

    def update(run: Run, *given: Any, **options: Any) -> dict[str, float]:
        first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if first and os.environ["RANK"] == victim and run.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return take(run, *given, **options)

    loop.update = update
    raise SystemExit(train_cli.main(arguments))


@pytest.mark.parametrize(("victim", "seconds"), [("1", "1e6"), ("0", "0")])
def test_a_process_that_dies_ends_all_and_torchrun_goes_on(victim: str, seconds: str, tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "train.txt").write_text("".join(text(40)))
    arguments = command("ar-tiny", tmp_path, tmp_path / "run", "--set", f"training.checkpoint_seconds={seconds}")
    module = ("tests.support.several_processes", "tests.ltm.training.test_processes")
    # Without this, restarted processes look for the dead ones in the store of torchrun (pytorch/pytorch#135712).
    own_store = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    run = torchrun(2, *module, "dying", victim, *arguments, options=("--max-restarts", "1"), environment=own_store)
    assert run.returncode == 0, run.stderr
    assert "another process of this run has gone, in step 4" in run.stderr
    # The first process saves what it has; when it was the one to die, what it saved before is gone on from.
    assert ("; step 3 is saved: issue the same command again" in run.stderr) == (victim == "1")
    assert [line["step"] for line in log(tmp_path / "run")] == list(range(1, 7))
    folder, info = checkpoint.read_info(tmp_path / "run")
    assert info["training"]["complete"]
    assert train_cli.main(command("ar-tiny", tmp_path, tmp_path / "one")) == 0
    expected = checkpoint.load_weights(checkpoint.step_folder(tmp_path / "one"))
    for name, value in checkpoint.load_weights(folder).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)
