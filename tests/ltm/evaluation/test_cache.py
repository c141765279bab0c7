"""Answers on disk: whole or absent after any kill, damage noticed, one owner at a time."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path

import pytest

from ltm.errors import UserError
from ltm.evaluation.cache import cache_path, open_cache
from ltm.evaluation.code import code_digest
from ltm.files import locked

WHERE = {"weights": "w", "seed": 0}


def fill(directory: Path, **records) -> Path:
    with open_cache(directory, WHERE, work="test") as cache:
        cache.add(records)
    return cache_path(directory, WHERE)


def refused(directory: Path, words: str) -> None:
    with pytest.raises(UserError, match=words), open_cache(directory, WHERE, work="scoring of x"):
        pass


def test_round_trip_keeps_floats_exactly(tmp_path):
    values = {"nats": -1 / 3, "tokens": 7, "parts": {"-kl": -0.1}, "text": "naïve\n", "none": None}
    fill(tmp_path, a=values, b=[1, 2])
    with open_cache(tmp_path, WHERE, work="test") as cache:
        assert cache["a"] == values and cache["b"] == [1, 2]
        assert "a" in cache and "c" not in cache
        assert cache["circumstances"] == WHERE


def test_other_circumstances_have_another_file(tmp_path):
    assert fill(tmp_path, a=1) == cache_path(tmp_path, {"seed": 0, "weights": "w"})
    assert len({cache_path(tmp_path, c) for c in (WHERE, {**WHERE, "seed": 1}, {**WHERE, "draws": 1})}) == 3


def test_a_kill_at_any_byte_of_a_write_loses_only_what_was_being_written(tmp_path):
    path = fill(tmp_path, first=1)
    before = path.read_bytes()
    fill(tmp_path, second={"nats": -2.5}, third=3)
    after = path.read_bytes()
    for length in range(len(before), len(after) + 1):
        path.write_bytes(after[:length])
        with open_cache(tmp_path, WHERE, work="test") as cache:
            assert cache["first"] == 1
            whole_lines = after[len(before) : length].count(b"\n")
            assert [name for name in ("second", "third") if name in cache] == ["second", "third"][:whole_lines]
            cache.add({"next": 4})
        with open_cache(tmp_path, WHERE, work="test") as cache:
            assert cache["next"] == 4


def test_a_changed_digit_is_noticed_and_its_record_dropped(tmp_path, caplog):
    path = fill(tmp_path, good={"nats": -1.5}, bad={"nats": -2.5}, last=3)
    path.write_bytes(path.read_bytes().replace(b"-2.5", b"-0.5"))
    with caplog.at_level(logging.WARNING), open_cache(tmp_path, WHERE, work="test") as cache:
        assert "good" in cache and "bad" not in cache and "last" in cache
    assert "1 damaged record dropped" in caplog.text
    caplog.clear()
    with open_cache(tmp_path, WHERE, work="test"):
        assert not caplog.records


def test_nothing_infinite_is_kept(tmp_path):
    with open_cache(tmp_path, WHERE, work="test") as cache, pytest.raises(ValueError):
        cache.add({"a": float("nan")})
    with open_cache(tmp_path, WHERE, work="test") as cache:
        assert "a" not in cache


def at_work(directory: Path, words: str) -> None:
    """Another process has the cache, so that one that opened it would wait."""
    with (
        pytest.raises(UserError, match=words),
        locked(cache_path(directory, WHERE).with_suffix(".lock"), work="scoring of x"),
    ):
        pass


def test_one_process_does_not_wait_for_itself_and_is_told_so(tmp_path):
    with open_cache(tmp_path, WHERE, work="scoring of x"):
        refused(tmp_path, rf"scoring of x is already under way: process {os.getpid()} on .* minutes")
        with open_cache(tmp_path, {**WHERE, "seed": 1}, work="other work"):
            pass
    with open_cache(tmp_path, WHERE, work="scoring of x"):
        pass


HOLD = """
import sys, time
from importlib import import_module
from pathlib import Path
from ltm.evaluation.cache import open_cache
with open_cache(Path(sys.argv[1]), {"weights": "w", "seed": 0}, work="test") as cache:
    for i in range(10**6):
        cache.add({str(i): [0.1] * 200})
        print(i, flush=True)
"""


def test_a_killed_owner_frees_the_lock_and_its_records_are_there(tmp_path, caplog, capsys):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(20):
        line = process.stdout.readline()
    at_work(tmp_path, f"already under way: process {process.pid}")
    killer = threading.Timer(1.0, process.kill)
    killer.start()
    # Waits for the other until that one is dead, and has its answers then.
    with caplog.at_level(logging.WARNING), open_cache(tmp_path, WHERE, work="test") as cache:
        assert all(str(i) in cache for i in range(int(line) + 1))
    killer.join()
    process.wait()
    process.stdout.close()
    said = f"test is already under way: process {process.pid} on .*; waiting for it"
    assert len(re.findall(said, capsys.readouterr().err)) == 1
    assert f"an earlier run did not end well: process {process.pid}" in caplog.text


def test_a_paused_owner_whose_lock_was_taken_over_writes_nothing_more(tmp_path, monkeypatch, caplog):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(20):
        process.stdout.readline()
    process.send_signal(signal.SIGSTOP)
    path = cache_path(tmp_path, WHERE)
    # As on another host, on a file system where hosts do not see each other's locks, after minutes.
    path.with_suffix(".lock").unlink()
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    at_work(tmp_path, rf"may be under way on another machine: process {process.pid} on .*, last seen \d+ seconds ago")
    owner = path.with_suffix(".lock.owner")
    os.utime(owner, (0, time.time() - 301))
    with caplog.at_level(logging.WARNING), open_cache(tmp_path, WHERE, work="test") as cache:
        assert re.search(rf"no sign of life for 5 minutes: process {process.pid} on .*; going on", caplog.text)
        known = len(cache)
        process.send_signal(signal.SIGCONT)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == 1 and f"process {os.getpid()} on elsewhere" in error.splitlines()[-1], error
        cache.add({"mine": 1})
        assert json.loads(owner.read_text())["pid"] == os.getpid()
    with open_cache(tmp_path, WHERE, work="test") as cache:
        # The one that may have been on its way when the process was paused.
        assert cache["mine"] == 1 and known + 1 <= len(cache) <= known + 2


def test_a_home_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set LTM_HOME"), open_cache(tmp_path / "file" / "cache", WHERE, work="test"):
        pass


def test_code_that_answers_is_that_of_the_model_and_of_what_stands_beside_it(tmp_path, monkeypatch):
    source = "from tests.support.harness_models import Bigram\n\n\nclass Mine(Bigram):\n    pass\n"
    package = tmp_path / "a_package_of_models"
    package.mkdir()
    for file in (package / "model.py", tmp_path / "a_lone_model.py"):
        file.write_text(source)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    in_package, alone = (import_module(name).Mine for name in ("a_package_of_models.model", "a_lone_model"))
    before = code_digest(in_package), code_digest(alone)
    assert before == (code_digest(in_package), code_digest(alone)) and before[0] != before[1]
    (package / "shared.py").write_text("DRAWS = 3\n")
    (tmp_path / "something_else.py").write_text("")
    assert code_digest(in_package) != before[0] and code_digest(alone) == before[1]
