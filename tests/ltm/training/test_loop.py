"""Training: the same numbers whether broken off or not, split or not, and messages where it cannot go on.

`python -m tests.ltm.training.test_loop > tests/golden/losses.json` writes the golden losses anew, for a
change that is meant to move them; say why in the changelog.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ltm import devices
from ltm.api import LanguageModel, Loss
from ltm.errors import UserError
from ltm.files import check_held, locked
from ltm.training import checkpoint
from ltm.training import log as training_log
from ltm.training.config import TrainConfig, parse_budget, total_steps
from ltm.training.interrupts import deferred_interrupts
from ltm.training.loop import train, update
from ltm.training.state import Run
from tests.support.miniature_runs import RECIPE, L, dataset, log, model, run, tokenizer

GOLDEN = Path(__file__).parents[2] / "golden" / "losses.json"
FAMILIES = ("ltm", "ar", "bd3lm", "md4", "mdlm", "sedd", "vae")


def interrupt_at(step: int, number: signal.Signals = signal.SIGINT) -> Callable[..., None]:
    """A report that sends this process a signal after an update, as Ctrl-C would."""

    def report(done: int, *_: Any) -> None:
        if done == step:
            os.kill(os.getpid(), number)

    return report


def crash_at(step: int) -> Callable[..., None]:
    def report(done: int, *_: Any) -> None:
        if done == step:
            raise ZeroDivisionError

    return report


def state_of(directory: Path) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint but the wall time."""
    folder = checkpoint.step_folder(directory)
    state = checkpoint.load_state(folder)
    state["run"] = state["run"][:1]
    return state | {f"scored {k}": v for k, v in checkpoint.load_weights(folder).items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert value.dtype == found[name].dtype and torch.equal(value, found[name]), name


RECIPES = {
    **dict.fromkeys(FAMILIES, RECIPE),
    "without average": dataclasses.replace(RECIPE, ema=0.0),
    "bfloat16": dataclasses.replace(RECIPE, matmul="bfloat16"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_run_that_was_broken_off_is_the_unbroken_run(case: str, tmp_path: Path) -> None:
    family, recipe = case if case in FAMILIES else "ar" if case == "without average" else "ltm", RECIPES[case]
    # Eight updates of eight sequences pass the end of the data more than once.
    assert 8 * 8 > 2 * dataset(tmp_path).blocks > 2 * 8
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt, match="step 7 is saved"):
        run(family, straight, tmp_path, recipe, report=interrupt_at(7))
    for stop in (2, 3, 7):
        with pytest.raises(KeyboardInterrupt, match=f"step {stop} is saved"):
            run(family, broken, tmp_path, recipe, report=interrupt_at(stop))
    state = state_of(straight)
    assert any(name.startswith("adam.exp_avg_sq.") for name in state)
    assert any(name.startswith("weights.") for name in state) == bool(recipe.ema)
    assert_same(state_of(broken), state)

    ends = [run(family, directory, tmp_path, recipe) for directory in (broken, tmp_path / "never")]
    assert len({checkpoint.read_info(end)[1]["weights_digest"] for end in ends}) == 1
    assert log(broken) == log(tmp_path / "never")
    assert [line["step"] for line in log(broken)] == list(range(1, 9))
    assert [line["tokens"] for line in log(broken)] == [n * 8 * L for n in range(1, 9)]


AUTO = dataclasses.replace(RECIPE, matmul="auto")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Move to a machine on which `auto` means this dtype."""

    def move(dtype: str) -> None:
        monkeypatch.setattr(devices, "_fastest_on_cpu", lambda inputs, outputs: getattr(torch, dtype))

    return move


@pytest.mark.parametrize(("began", "other"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_run_keeps_the_dtype_that_it_began_with(
    began: Any, other: Any, machine: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(began)
    whole = run("ltm", tmp_path / "whole", tmp_path, AUTO)
    with pytest.raises(KeyboardInterrupt):
        run("ltm", tmp_path / "broken", tmp_path, AUTO, report=interrupt_at(3))
    machine(other)
    capsys.readouterr()
    moved = run("ltm", tmp_path / "broken", tmp_path, AUTO)
    assert f"began with matrix products in {began} and goes on with them" in capsys.readouterr().err
    first, second = (checkpoint.read_info(folder)[1] for folder in (whole, moved))
    assert first["weights_digest"] == second["weights_digest"]
    for info in (first, second):
        assert info["training"]["dtype"] == info["training"]["recipe"]["matmul"] == began
        assert info["config"]["posterior"]["matmul"] == began
    # What is not left to the machine must agree with what was recorded.
    with pytest.raises(UserError, match=f"its matmul is '{began}', this command's '{other}'"):
        run("ltm", tmp_path / "broken", tmp_path, dataclasses.replace(RECIPE, matmul=other))


def test_a_run_from_before_machines_chose_goes_on(machine: Callable, tmp_path: Path) -> None:
    """Its recipe says bfloat16, the default then, and its digest is that of the whole config."""
    old = dataclasses.replace(RECIPE, matmul="bfloat16")
    posterior = dataclasses.replace(model("ltm").config.posterior, matmul="bfloat16")
    straight = run("ltm", tmp_path / "straight", tmp_path, old, untrained=model("ltm", posterior=posterior))
    with pytest.raises(KeyboardInterrupt):
        changed = model("ltm", posterior=posterior)
        run("ltm", tmp_path / "old", tmp_path, old, untrained=changed, report=interrupt_at(3))
    machine("float32")
    end = run("ltm", tmp_path / "old", tmp_path, AUTO)
    first, second = (checkpoint.read_info(folder)[1] for folder in (straight, end))
    assert first["weights_digest"] == second["weights_digest"]


def test_updates_lost_in_a_crash_are_done_again_and_logged_once(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run("ar", directory, tmp_path, report=interrupt_at(2))
    with pytest.raises(ZeroDivisionError):
        run("ar", directory, tmp_path, report=crash_at(5))
    assert len(log(directory)) == 5 and checkpoint.step_folder(directory).name == "step-00000002"
    with (directory / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "tok')
    run("ar", directory, tmp_path)
    run("ar", tmp_path / "straight", tmp_path)
    assert log(directory) == log(tmp_path / "straight")


def test_odd_lines_of_a_log_are_dropped_and_the_last_of_a_step_counts(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    odd = [b"\xff", b"null", b"[]", b"{}", b'{"step": "1"}', b"[" * 100_000, b'{"step": 2, "loss"']
    good = [b'{"step": 1, "loss": 5}', b'{"step": 3, "loss": 0}', b'{"step": 2, "loss": 4}', b'{"step": 3, "loss": 3}']
    path.write_bytes(b"\n".join(line for pair in zip(good, odd, strict=False) for line in pair) + b"\n" + odd[-1])
    training_log.keep(path, 3)
    assert path.read_bytes() == b"\n".join([good[0], good[2], good[3], b""])
    training_log.keep(path, 1)
    assert path.read_bytes() == good[0] + b"\n"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="expected a file, found a pipe"):
        training_log.keep(path, 1)


def test_a_run_that_another_process_took_over_writes_nothing_more(tmp_path: Path) -> None:
    directory = tmp_path / "run"

    def lose(step: int, *_: Any) -> None:
        if step == 3:
            while not (directory / "step-00000003").is_dir():  # it is written while training goes on
                time.sleep(0.01)
            (directory / ".lock.owner").write_text('{"host": "elsewhere", "pid": 7, "nonce": "0"}')

    directory.mkdir()
    often = dataclasses.replace(RECIPE, checkpoint_seconds=0.0)
    with (
        pytest.raises(UserError, match=r"lost: process 7 on elsewhere.* took it over"),
        locked(directory / checkpoint.LOCK, work="training"),
    ):
        run("ar", directory, tmp_path, often, report=lose)
    assert len(log(directory)) == 3 and checkpoint.step_folder(directory).name == "step-00000003"
    with locked(directory / "other", work="nothing"), pytest.raises(UserError, match=r"owner is gone"):
        (directory / "other.owner").unlink()
        check_held(directory / "other")


def test_what_a_finished_run_still_had_to_delete_goes(tmp_path: Path) -> None:
    first = run("ar", tmp_path / "run", tmp_path)
    shutil.copytree(first, first.with_name("step-00000004"))
    shutil.copytree(first, first.with_name(".step-00000002"))
    assert run("ar", tmp_path / "run", tmp_path) == first
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["log.jsonl", first.name]


def test_a_crash_before_the_first_checkpoint_starts_over(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        run("ar", directory, tmp_path, report=crash_at(5))
    run("ar", directory, tmp_path)
    run("ar", tmp_path / "straight", tmp_path)
    assert log(directory) == log(tmp_path / "straight")


def test_checkpoints_are_written_on_the_way(tmp_path: Path) -> None:
    often = dataclasses.replace(RECIPE, checkpoint_seconds=0.0)
    with pytest.raises(ZeroDivisionError):
        run("ar", tmp_path / "run", tmp_path, often, report=crash_at(5))
    assert [p.name for p in checkpoint.steps(tmp_path / "run")] == ["step-00000004", "step-00000005"]
    # How often does not matter to the weights, so a run may go on with another interval.
    rarely = dataclasses.replace(RECIPE, checkpoint_seconds=1e6)
    end = run("ar", tmp_path / "run", tmp_path, rarely)
    assert end.name == "step-00000008-final"
    straight = run("ar", tmp_path / "straight", tmp_path)
    assert checkpoint.read_info(end)[1]["weights_digest"] == checkpoint.read_info(straight)[1]["weights_digest"]


def gradients(family: str, cache: Path, config: TrainConfig) -> dict[str, Tensor]:
    """Of the first update, not clipped."""
    one = Run.new(model(family, seed=5), dataclasses.replace(config, clip=1e9))
    update(one, dataset(cache), config, progress=1.0, lr=config.lr)
    return {name: p.grad for name, p in one.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_accumulation_gives_the_gradient_of_the_large_batch(family: str, tmp_path: Path) -> None:
    unclipped = dataclasses.replace(RECIPE, clip=1e9)
    whole = gradients(family, tmp_path, dataclasses.replace(unclipped, batch=8, accumulation=1))
    for batch, accumulation in ((4, 2), (1, 8)):
        parts = gradients(family, tmp_path, dataclasses.replace(unclipped, batch=batch, accumulation=accumulation))
        assert parts.keys() == whole.keys() and len(whole) == len(list(model(family).parameters()))
        for name, expected in whole.items():
            torch.testing.assert_close(parts[name], expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_the_recorded_loss_is_the_mean_over_the_accumulated_batches(tmp_path: Path) -> None:
    def loss(batch: int, accumulation: int) -> float:
        config = dataclasses.replace(RECIPE, batch=batch, accumulation=accumulation)
        return update(Run.new(model("ar"), config), dataset(tmp_path), config, progress=0.5, lr=config.lr)["loss"]

    assert loss(8, 1) == pytest.approx(loss(2, 4), rel=1e-6)


def golden_losses(family: str, dtype: torch.dtype, cache: Path) -> list[float]:
    """The losses of ten updates at the default optimiser, in products of full precision."""
    changes: dict[str, Any] = {}
    if family == "ltm":
        changes["posterior"] = dataclasses.replace(model("ltm").config.posterior, matmul="float32")
        changes["kl_warmup"] = 0.5
    recipe = TrainConfig(budget=f"tokens={10 * 8 * L}", batch=4, accumulation=2, lr=3e-3, ema=0.0, matmul="float32")
    untrained = model(family, seed=11, **changes).to(dtype)
    run(family, cache / f"{family} {dtype}", cache, recipe, untrained=untrained)
    return [line["loss"] for line in log(cache / f"{family} {dtype}")]


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("family", FAMILIES)
def test_golden_losses(family: str, dtype: torch.dtype, within: float, tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text())[family]
    assert golden_losses(family, dtype, tmp_path) == pytest.approx(expected, rel=within)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tokens=50M", ("tokens", 50e6)),
        ("tokens=1.5k", ("tokens", 1500.0)),
        ("tokens=2K", ("tokens", 2000.0)),
        ("flops=1e15", ("flops", 1e15)),
        ("flops=2T", ("flops", 2e12)),
        ("seconds=600", ("seconds", 600.0)),
        ("tokens=0.9B", ("tokens", 0.9e9)),
    ],
)
def test_budgets(text: str, expected: tuple[str, float]) -> None:
    unit, amount = parse_budget(text)
    assert unit == expected[0] and amount == pytest.approx(expected[1])


@pytest.mark.parametrize(
    "text",
    (
        *("", "50M", "tokens", "tokens=", "tokens=M", "tokens=0", "tokens=-1", "tokens=nan", "tokens=1e999"),
        *("flops=inf", "hours=3", "tokens=5X", "Tokens=5", "tokens=5 M M", "seconds=1=2"),
    ),
)
def test_bad_budgets(text: str) -> None:
    with pytest.raises(ValueError, match="expected tokens=50M, flops=1e15 or seconds=600"):
        parse_budget(text)


def test_updates_that_a_budget_pays_for(tmp_path: Path) -> None:
    def steps(budget: str) -> int | None:
        return total_steps(dataclasses.replace(RECIPE, budget=budget), L, 1000.0)

    assert steps("tokens=640") == 10 and steps("flops=640000") == 10
    assert steps("tokens=1") == 1 and steps("seconds=1") is None
    flops = model("ar").cost(L).train_flops_per_token * 3 * 8 * L
    folder = run("ar", tmp_path / "run", tmp_path, dataclasses.replace(RECIPE, budget=f"flops={flops}"))
    training = checkpoint.read_info(folder)[1]["training"]
    assert training["steps"] == 3 and training["tokens"] == 3 * 8 * L and training["flops"] == pytest.approx(flops)
    assert training["complete"] and training["seed"] == 0 and training["dtype"] == "float32"


def test_a_budget_of_seconds_is_kept(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, budget="seconds=0.3")
    seen: list[float] = []
    folder = run(
        "ar", tmp_path / "run", tmp_path, recipe, report=lambda step, total, progress, _: seen.append(progress)
    )
    training = checkpoint.read_info(folder)[1]["training"]
    assert training["steps"] == len(log(tmp_path / "run")) > 3 and 0.2 < training["seconds"] < 3
    assert seen == sorted(seen) and 0 < seen[0] and seen[-1] <= 1
    with pytest.raises(UserError, match="budget seconds=1e-9 ended before the first update"):
        run("ar", tmp_path / "short", tmp_path, dataclasses.replace(RECIPE, budget="seconds=1e-9"))


def test_learning_rate_rises_to_its_peak_and_falls_to_its_floor(tmp_path: Path) -> None:
    recipe = TrainConfig(lr=0.02, warmup=0.25, final_lr=0.1)
    assert (
        recipe.lr_at(0) == 0 and recipe.lr_at(0.25) == pytest.approx(0.02) and recipe.lr_at(1) == pytest.approx(0.002)
    )
    assert recipe.lr_at(0.125) == pytest.approx(0.01) and recipe.lr_at(0.625) == pytest.approx(0.011)
    shape = [recipe.lr_at(n / 100) for n in range(101)]
    assert shape[:26] == sorted(shape[:26]) and shape[25:] == sorted(shape[25:], reverse=True)
    assert TrainConfig(warmup=0.0).lr_at(0) == TrainConfig().lr
    run("ar", tmp_path / "run", tmp_path)
    used = [line["lr"] for line in log(tmp_path / "run")]
    assert used == [RECIPE.lr_at(n / 8) for n in range(1, 9)]


def poison(victim: LanguageModel, *, after: float, value: float) -> LanguageModel:
    """Let the loss become `value` from a share of the training on."""
    sound = victim.training_loss

    def training_loss(tokens_BL: Tensor, *, rng: Any, progress: float = 1.0) -> Loss:
        loss = sound(tokens_BL, rng=rng, progress=progress)
        return dataclasses.replace(loss, value=loss.value * (value if progress >= after else 1.0))

    victim.training_loss = training_loss  # type: ignore[method-assign]
    return victim


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_was_good(value: float, tmp_path: Path) -> None:
    directory, recipe = tmp_path / "run", dataclasses.replace(RECIPE, checkpoint_seconds=0.0)
    with pytest.raises(UserError) as error:
        run("ar", directory, tmp_path, recipe, untrained=poison(model("ar"), after=0.5, value=value))
    message = str(error.value)
    assert "step 5 is not finite: loss" in message and "--set training.lr=0.005 --fresh" in message
    assert [line["step"] for line in log(directory)] == [1, 2, 3, 4]
    loaded = checkpoint.load(directory)
    assert loaded.info["training"]["steps"] == 4 and not loaded.info["training"]["complete"]
    assert all(p.isfinite().all() for p in loaded.model.parameters())


CHANGES: dict[str, dict[str, Any]] = {
    "lr": {"config": {"lr": 0.02}},
    "seed": {"config": {"seed": 1}},
    "budget": {"config": {"budget": "tokens=640"}},
    "corpus": {"corpus": "other"},
    "tokenizer": {"tokenizer": "0" * 64},
    "model.posterior.steps": {"posterior": {"steps": 5}},
}


@pytest.mark.parametrize("field", CHANGES)
def test_another_run_in_the_same_place_is_refused_by_field(field: str, tmp_path: Path) -> None:
    change, directory = CHANGES[field], tmp_path / "run"
    options: dict[str, Any] = {"corpus": "toy", "tokenizer": "1" * 64}
    with pytest.raises(KeyboardInterrupt):
        run("ltm", directory, tmp_path, report=interrupt_at(2), **options)
    changed = model("ltm")
    if "posterior" in change:
        changed = model("ltm", posterior=dataclasses.replace(changed.config.posterior, **change["posterior"]))
    recipe = dataclasses.replace(RECIPE, **change.get("config", {}))
    options |= {name: change[name] for name in ("corpus", "tokenizer") if name in change}
    before = sorted(p.stat().st_mtime_ns for p in directory.rglob("*"))
    with pytest.raises(UserError, match=f"holds another run: its {field} is .*--fresh to replace it, or --output"):
        run("ltm", directory, tmp_path, recipe, untrained=changed, **options)
    assert sorted(p.stat().st_mtime_ns for p in directory.rglob("*")) == before


def test_another_family_in_the_same_place_is_refused(tmp_path: Path) -> None:
    run("ar", tmp_path / "run", tmp_path)
    with pytest.raises(UserError, match=r"holds another run: its model\.\w+"):
        run("ltm", tmp_path / "run", tmp_path)


def test_the_same_text_from_elsewhere_is_the_same_run(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run("ar", tmp_path / "run", tmp_path, report=interrupt_at(2), data_source={"file": "toy/train.txt"})
    folder = run("ar", tmp_path / "run", tmp_path, data_source={"file": "toy/train.txt.xz"})
    assert checkpoint.read_info(folder)[1]["training"]["data_source"] == {"file": "toy/train.txt.xz"}


def test_a_finished_run_is_returned_as_it_is(tmp_path: Path) -> None:
    first = run("ar", tmp_path / "run", tmp_path)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}

    def fail(*_: Any) -> None:
        raise AssertionError("nothing is left to train")

    assert run("ar", tmp_path / "run", tmp_path, report=fail) == first
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_damage_to_a_run_is_said_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run("ar", tmp_path / "run", tmp_path, report=interrupt_at(2))
    os.truncate(checkpoint.step_folder(tmp_path / "run") / "state.safetensors", 100)
    with pytest.raises(UserError, match=r"state\.safetensors is altered or cut short"):
        run("ar", tmp_path / "run", tmp_path)


def test_moving_average(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, ema=0.35)
    one, data = Run.new(model("ar"), recipe), dataset(tmp_path)
    average = {name: p.detach().clone().double() for name, p in one.model.named_parameters()}
    for n in range(1, 7):
        update(one, data, recipe, progress=0.5, lr=recipe.lr)
        decay = min(0.35, (1 + n) / (10 + n))
        for name, p in one.model.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * p.detach().double()
    assert (1 + 4) / (10 + 4) > 0.35 > (1 + 3) / (10 + 3)  # both branches were taken
    for name, expected in average.items():
        torch.testing.assert_close(one.scored()[name].double(), expected, rtol=1e-5, atol=1e-7)
    for name, p in one.model.named_parameters():
        assert not torch.equal(one.scored()[name], p)


def test_matrices_decay_and_vectors_do_not() -> None:
    one = Run.new(model("ltm"), dataclasses.replace(RECIPE, weight_decay=0.5))
    before = {name: p.detach().clone() for name, p in one.model.named_parameters()}
    for p in one.model.parameters():
        p.grad = torch.zeros_like(p)
    one.optimizer.step()
    for name, p in one.model.named_parameters():
        expected = before[name] * (1 - RECIPE.lr * 0.5) if p.ndim > 1 else before[name]
        torch.testing.assert_close(p.detach(), expected)


def test_cross_attention_learns_at_its_own_rate(tmp_path: Path) -> None:
    one = Run.new(model("ltm", cross_rate=0.25), dataclasses.replace(RECIPE, weight_decay=0.0))
    data = dataset(tmp_path)
    before = {name: p.detach().clone() for name, p in one.model.named_parameters()}
    update(one, data, RECIPE, progress=0.5, lr=0.01)
    # Adam's first step is of the size of the rate wherever the gradient is well above its epsilon.
    for name, p in one.model.named_parameters():
        rate = 0.01 * (0.25 if ".cross_" in name else 1.0)
        assert 0.9 * rate < float((p.detach() - before[name]).abs().max()) < 1.001 * rate, name


def test_termination_saves_like_an_interrupt(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt, match="step 3 is saved"):
        run("ar", tmp_path / "run", tmp_path, report=interrupt_at(3, signal.SIGTERM))
    assert checkpoint.step_folder(tmp_path / "run").name == "step-00000003"


def test_a_second_interrupt_stops_at_once() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    handlers = [signal.getsignal(number) for number in numbers]
    with deferred_interrupts() as interrupted:
        assert not interrupted()
        for _ in range(2):  # one Ctrl-C may arrive twice, from the terminal and from a parent
            os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        time.sleep(1.05)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
    assert [signal.getsignal(number) for number in numbers] == handlers
    with deferred_interrupts() as interrupted:
        for number in (signal.SIGUSR1, signal.SIGTERM):  # as schedulers send them, the second a minute later
            os.kill(os.getpid(), number)
        time.sleep(1.05)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupted() == signal.SIGUSR1


def test_outside_the_main_thread_signals_are_left_alone(tmp_path: Path) -> None:
    done: list[Path] = []
    thread = threading.Thread(target=lambda: done.append(run("ar", tmp_path / "run", tmp_path)))
    thread.start()
    thread.join()
    assert done and done[0].name == "step-00000008-final"


def test_a_full_disk_is_said_and_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        run("ar", tmp_path / "run", tmp_path, report=interrupt_at(2))
    full = Path.open

    def open_or_fail(path: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if path.name == "log.jsonl" and mode == "a":
            raise OSError(28, "No space left on device")
        return full(path, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", open_or_fail)
    with pytest.raises(UserError, match=r"cannot write .*log\.jsonl: No space left on device; checkpoints are kept"):
        run("ar", tmp_path / "run", tmp_path)
    monkeypatch.undo()
    run("ar", tmp_path / "run", tmp_path)
    assert [line["step"] for line in log(tmp_path / "run")] == list(range(1, 9))


def test_what_is_scored_is_the_average_and_what_trains_on_is_not(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run("ar", tmp_path / "run", tmp_path, report=interrupt_at(4))
    state = state_of(tmp_path / "run")
    loaded = checkpoint.load(tmp_path / "run").model.state_dict()
    for name, value in loaded.items():
        assert torch.equal(value, state[f"scored {name}"]) and not torch.equal(value, state[f"weights.{name}"])


def test_training_helps_on_text_it_has_seen(tmp_path: Path) -> None:
    recipe = TrainConfig(budget="tokens=20k", batch=8, lr=2e-2, ema=0.9, matmul="float32")
    folder = train(
        "ar-mini", model("ar"), dataset(tmp_path), tokenizer(), recipe, tmp_path / "run", provenance={"corpus": "toy"}
    )
    losses = [line["loss"] for line in log(tmp_path / "run")]
    assert losses[0] == pytest.approx(math.log(257), rel=0.02) and losses[-1] < 0.6 * losses[0]
    tokens_BL, _ = dataset(tmp_path).batch(0, 8, seed=0)
    found = checkpoint.load(folder).model.log_likelihood(tokens_BL, rng=torch.Generator())
    assert float(-found.nats_B.sum() / found.tokens_B.sum()) < 0.6 * losses[0]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        losses = {family: golden_losses(family, torch.float64, Path(place)) for family in FAMILIES}
    print(json.dumps(losses, indent=1))
