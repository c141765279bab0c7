"""Long runs: stopped by schedulers, saved while they go on, begun elsewhere, short of memory, followed by trackers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ltm import errors
from ltm.data import corpora
from ltm.errors import UserError
from ltm.train_cli import main
from ltm.training import checkpoint, trackers
from ltm.training.checkpoint import HUB_NAMES, MANIFEST
from ltm.training.slow_step import SlowStep
from tests.ltm.test_train_cli import command
from tests.ltm.training.test_loop import assert_same, interrupt_at, state_of
from tests.support.miniature_runs import RECIPE, log, run, text

ALWAYS = ("--set", "training.checkpoint_seconds=0")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "toy").mkdir(parents=True)
    (tmp_path / "data" / "toy" / "train.txt").write_text("".join(text(40)))
    return tmp_path / "data"


def in_pass(number: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something in the middle of an update: before the backward pass of this number, from 1, two in an update."""
    backward, passes = SlowStep.backward, [0]

    def counted(self: SlowStep, *given: Any, **options: Any) -> dict[str, float]:
        passes[0] += 1
        if passes[0] == number:
            act()
        return backward(self, *given, **options)

    monkeypatch.setattr(SlowStep, "backward", counted)


def digest(directory: Path) -> str:
    return checkpoint.read_info(directory)[1]["weights_digest"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_scheduler_stops_a_run_in_the_middle_of_an_update_and_it_goes_on_bit_for_bit(
    number: signal.Signals, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    arguments = command("ltm-tiny", data, tmp_path / "run")
    with monkeypatch.context() as patch:
        in_pass(6, lambda: os.kill(os.getpid(), number), patch)
        assert main(arguments) == errors.PREEMPTED == 75
    assert "stopped: step 3 is saved; issue the same command again" in capsys.readouterr().err
    assert checkpoint.step_folder(tmp_path / "run").name == "step-00000003"
    assert main(arguments) == 0
    assert main(command("ltm-tiny", data, tmp_path / "unbroken")) == 0
    assert digest(tmp_path / "run") == digest(tmp_path / "unbroken")
    assert log(tmp_path / "run") == log(tmp_path / "unbroken")


def test_before_training_begins_a_scheduler_is_obeyed_at_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(corpora, "load", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    assert main(command("ar-tiny", data, tmp_path / "run")) == 75
    assert "stopped: finished work is kept; issue the same command" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_checkpoint_is_of_its_own_moment_though_training_goes_on_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses
    import time

    directory, written = tmp_path / "run", []
    save = checkpoint.save

    def slow(where: Path, step: int, **options: Any) -> Path:
        if step == 1:  # not before the second update is done
            until = time.monotonic() + 60
            while len((where / "log.jsonl").read_text().splitlines()) < 2:
                assert time.monotonic() < until
                time.sleep(0.01)
        written.append(step)
        return save(where, step, **options)

    monkeypatch.setattr(checkpoint, "save", slow)
    often = dataclasses.replace(RECIPE, checkpoint_seconds=0.0)

    def stop(step: int, *_: Any) -> None:
        if step == 2:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run("ar", directory, tmp_path, often, report=stop)
    assert written == [1, 2]
    monkeypatch.undo()
    with pytest.raises(KeyboardInterrupt):
        run("ar", tmp_path / "straight", tmp_path, report=interrupt_at(1))
    shutil.rmtree(directory / "step-00000002")
    assert_same(state_of(directory), state_of(tmp_path / "straight"))


def test_what_goes_wrong_with_a_checkpoint_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    def full(*_: Any, **__: Any) -> Path:
        raise UserError("cannot write the checkpoint: No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(UserError, match="No space left"):
        run("ar", tmp_path / "run", tmp_path, dataclasses.replace(RECIPE, checkpoint_seconds=0.0))
    assert len(log(tmp_path / "run")) <= 2


def test_as_many_checkpoints_stay_as_asked_for(data: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(command("ar-tiny", data, tmp_path / "run", *ALWAYS, "--keep", "3")) == 0
    kept = [folder.name for folder in checkpoint.steps(tmp_path / "run")]
    assert kept == ["step-00000005", "step-00000006", "step-00000006-final"]
    assert main(command("ar-tiny", data, tmp_path / "run", "--keep", "0")) == 2
    assert "--keep=0: expected" in capsys.readouterr().err


def test_an_update_too_large_for_memory_says_how_to_make_it_smaller_which_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail() -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried\nmore")

    with monkeypatch.context() as patch:
        in_pass(7, fail, patch)
        assert main(command("ar-tiny", data, tmp_path / "run", *ALWAYS)) == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    assert "out of memory in step 4, with 4 sequences at a time: [enforce fail] Default" in printed
    advice = ("--set", "training.batch=2", "--set", "training.accumulation=4")
    assert " ".join(advice) in printed
    assert main(command("ar-tiny", data, tmp_path / "run", *advice)) == 0
    assert main(command("ar-tiny", data, tmp_path / "unbroken")) == 0
    assert [line["step"] for line in log(tmp_path / "run")] == list(range(1, 7))
    weights, expected = (checkpoint.load_weights(checkpoint.step_folder(tmp_path / w)) for w in ("run", "unbroken"))
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)
    # Another number of sequences in an update is another run.
    assert main(command("ar-tiny", data, tmp_path / "run", "--set", "training.batch=8")) == 2


def as_on_the_hub(folder: Path, place: Path) -> Path:
    """The files of a step folder under the names of the hub."""
    place.mkdir()
    recorded = checkpoint.manifest(folder)
    for name, public in HUB_NAMES.items():
        shutil.copy(folder / name, place / public)
    (place / MANIFEST).write_text(json.dumps({public: recorded[name] for name, public in HUB_NAMES.items()}))
    return place


def test_a_run_begins_with_a_checkpoint_from_elsewhere(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    with monkeypatch.context() as patch:
        in_pass(6, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        assert main(command("ar-tiny", data, tmp_path / "first")) == 75
    begun = checkpoint.step_folder(tmp_path / "first")
    from_there = ("--resume-from", str(tmp_path / "first"))
    assert main(command("ar-tiny", data, tmp_path / "second", *from_there)) == 0
    assert main(command("ar-tiny", data, tmp_path / "unbroken")) == 0
    assert digest(tmp_path / "second") == digest(tmp_path / "unbroken")
    assert checkpoint.step_folder(tmp_path / "first") == begun
    # The same command again, as after a requeue, has nothing left to do.
    assert main(command("ar-tiny", data, tmp_path / "second", *from_there)) == 0

    hub = as_on_the_hub(checkpoint.step_folder(tmp_path / "unbroken"), tmp_path / "hub")
    monkeypatch.setattr("ltm.model_store._from_hub", lambda name: hub)
    from_hub = ("--resume-from", "org/name")
    assert main(command("ar-tiny", data, tmp_path / "longer", *from_hub, updates=9)) == 0
    info = checkpoint.read_info(tmp_path / "longer")[1]
    assert info["training"]["steps"] == 9 and "(6 updates)" in info["training"]["recipe"]["extended"]
    assert main(command("ltm-tiny", data, tmp_path / "other", *from_hub, updates=9)) == 2
    unfinished = as_on_the_hub(begun, tmp_path / "unfinished")
    capsys.readouterr()
    assert main(command("ar-tiny", data, tmp_path / "none", "--resume-from", str(unfinished))) == 2
    assert "weights of an unfinished run without its training state" in capsys.readouterr().err
    assert not checkpoint.steps(tmp_path / "none")


class Recorder:
    """Stands in for the packages of trackers."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.lines: dict[int, dict[str, float]] = {}

    def init(self, **options: Any) -> Recorder:
        self.begun.append(options)
        return self

    def log(self, line: dict[str, float], *, step: int) -> None:
        self.lines[step] = line

    def finish(self) -> None:
        self.begun[-1]["finished"] = True


def test_weights_and_biases_gets_every_line_of_one_run_however_often_it_is_resumed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=recorder.init))
    arguments = command("ar-tiny", data, tmp_path / "run", "--log", "wandb")
    with monkeypatch.context() as patch:
        in_pass(6, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        assert main(arguments) == 75
    assert main(arguments) == 0
    first, second = recorder.begun
    assert first["id"] == second["id"] and first["finished"] and second["finished"] and first["resume"] == "allow"
    assert first["config"]["lr"] == 2e-3 and first["config"]["model.decoder.width"] == 8
    losses = {line["step"]: line["loss"] for line in log(tmp_path / "run")}
    assert {step: line["loss"] for step, line in recorder.lines.items()} == losses and len(losses) == 6
    assert main([*arguments, "--fresh"]) == 0
    assert recorder.begun[2]["id"] != first["id"]


def test_tensorboard_gets_every_line(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert main(command("ar-tiny", data, tmp_path / "run", "--log", "tensorboard")) == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in log(tmp_path / "run")]


def test_trackers_that_are_not_there_are_said_before_any_work(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for name, module in trackers.PACKAGES.items():
        monkeypatch.setitem(sys.modules, module, None)
        assert main(command("ar-tiny", data, tmp_path / "run", "--log", name)) == 2
        assert f"pip install {name}, or leave it out" in capsys.readouterr().err
    assert main(command("ar-tiny", data, tmp_path / "run", "--log", "tensorbord")) == 2
    assert "did you mean tensorboard" in capsys.readouterr().err
    assert not log_exists(tmp_path / "run")


def log_exists(directory: Path) -> bool:
    return (directory / "log.jsonl").exists()
