"""Messages that offer what was meant, and what a command exits with."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ltm.errors import UserError, did_you_mean, run_command

KNOWN = ["ltm-tiny", "ltm-small", "ar-tiny", "ptb"]


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("ltm-tny", "ltm-tiny"),
        ("LTM-Tiny", "ltm-tiny"),
        ("PTB", "ptb"),
        ("ar_tiny", "ar-tiny"),
        ("ltm-smal", "ltm-small"),
    ],
)
def test_the_nearest_name_comes_first(name: str, offered: str) -> None:
    message = str(did_you_mean("model", name, KNOWN))
    assert message.startswith(f"unknown model {name!r}; did you mean {offered}")


def test_without_a_near_name_all_are_listed() -> None:
    assert str(did_you_mean("model", "zzz", KNOWN)) == "unknown model 'zzz'; known: ar-tiny, ltm-small, ltm-tiny, ptb"
    assert str(did_you_mean("model", "zzz", [])) == "unknown model 'zzz'; known: none"
    assert str(did_you_mean("model", "", KNOWN)).startswith("unknown model ''; known: ")


def test_the_last_part_of_a_dotted_name_is_enough() -> None:
    known = ["posterior.lr", "training.lr", "latents"]
    assert str(did_you_mean("setting", "lr", known)).endswith("did you mean posterior.lr or training.lr?")


def fail(error: BaseException) -> int:
    raise error


def test_exit_codes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["somewhere/ltm-train"])
    assert run_command(lambda: None) == 0
    assert run_command(lambda: 3) == 3
    assert run_command(lambda: fail(UserError("no such thing"))) == 2
    assert capsys.readouterr().err == "ltm-train: error: no such thing\n"
    assert run_command(lambda: fail(KeyboardInterrupt("step 7 is saved"))) == 130
    assert capsys.readouterr().err == "\nltm-train: interrupted: step 7 is saved\n"
    assert run_command(lambda: fail(KeyboardInterrupt())) == 130
    assert "issue the same command again" in capsys.readouterr().err


def test_faults_of_ours_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: fail(ZeroDivisionError()))
    monkeypatch.setenv("LTM_TRACEBACK", "1")
    with pytest.raises(UserError):
        run_command(lambda: fail(UserError("x")))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_full_disk_is_said_wherever_it_is_met(lines: int) -> None:
    code = f"from ltm.errors import run_command as r; raise SystemExit(r(lambda: print('line\\n' * {lines})))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "-c: error: No space left on device; finished work is kept: make room, then issue the same command again\n"
    )


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "from ltm.errors import run_command as r; raise SystemExit(r(lambda: print('line\\n' * 100_000)))"
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert writer.stdout is not None and writer.stderr is not None
    writer.stdout.read(10)
    writer.stdout.close()
    with writer.stderr:
        assert writer.stderr.read() == b""
    assert writer.wait(timeout=20) == 0
