"""A results directory of strangers: what the commands say of copies, lost records, pipes, and names with escapes."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from leaderboard import cli
from leaderboard.content.document import Axis, slug
from leaderboard.render import html_page, svg
from leaderboard.render.markdown import escape
from leaderboard.verify import edited_digit
from ltm.config import canonical_json
from ltm.result import to_dict, write_result
from tests.support.mutated_results import HUGE, edited, mutated
from tests.support.result_factory import make_result

SECONDS = 2.0
"""Of computing that one file may take; wall time would depend on what else the machine does."""

Said = Callable[..., tuple[int, str]]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Said:
    """Call the command line next to `results`; return its exit code and all that it said."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["ltm-leaderboard", *arguments])
        capsys.readouterr()
        code = cli.main()
        return code, "".join(capsys.readouterr())

    return call


def pair(results: Path) -> tuple[Path, Path]:
    """Two results with records."""
    paths = []
    for name, nats in (("ar-tiny", 3.2), ("ar-small", 3.1)):
        records = [{"block": i, "tokens": 255, "exact": -255 * nats} for i in range(20)]
        paths.append(write_result(make_result(name=name, family="ar", nats=nats), results, records=records))
    return paths[0], paths[1]


COMMANDS = (("show",), ("build",), ("check",), ("compare", "ar-tiny", "ar-small"))


@pytest.mark.parametrize("literal", [*HUGE, "1e308", "-1", "NaN", r'"\ud800"', r'"\u001b[31m"', "1" * 5_001])
def test_the_commands_refuse_what_reading_refuses(said: Said, tmp_path: Path, literal: str) -> None:
    path, _ = pair(tmp_path / "results")
    data = json.loads(path.read_bytes())
    path.write_bytes(mutated(data, random.Random(3), literal=literal))
    for command in COMMANDS:
        code, text = said(*command)
        assert code == (1 if command == ("check",) else 2) and "results/ar-tiny/ltm_pydocs/" in text
        assert text.replace("\n", "").isprintable() and len(text) < 2_000


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_directory(path: Path) -> None:
    path.mkdir()


def put_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def put_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.skipif(os.name == "nt", reason="needs pipes and devices")
@pytest.mark.parametrize("put", [put_pipe, put_directory, put_device, put_link_to_itself])
@pytest.mark.parametrize("which", ["result", "records", "extra", "MANIFEST"])
def test_what_is_no_file_is_not_waited_for(said: Said, tmp_path: Path, put: Callable[[Path], None], which: str) -> None:
    path, _ = pair(tmp_path / "results")
    records = path.with_name(json.loads(path.read_bytes())["records"]["file"])
    extra, manifest = path.with_name("extra.json"), tmp_path / "results" / "MANIFEST"
    place = {"result": path, "records": records, "extra": extra, "MANIFEST": manifest}[which]
    place.unlink(missing_ok=True)
    put(place)
    for command in COMMANDS:
        if which == "MANIFEST" and command[0] in ("show", "compare"):
            continue  # they do not read it
        code, text = said(*command)
        assert code in (1, 2) and place.name in text, text
    # Nor in the place of what is written.
    place.rmdir() if put is put_directory else place.unlink()
    if which == "MANIFEST":
        put(tmp_path / "LEADERBOARD.md")
        assert said("build")[0] == 2 and said("check")[0] == 2
        for option in ("--readme", "--changelog"):
            assert said("check", option, "LEADERBOARD.md", "--out", "other.md")[0] == 2


def test_a_stray_copy_is_called_one(said: Said, tmp_path: Path) -> None:
    path, _ = pair(tmp_path / "results")
    assert said("build")[0] == 0
    copy_of_it = path.with_name(f"{path.stem} copy.json")
    copy_of_it.write_bytes(path.read_bytes())
    for command in COMMANDS:
        code, text = said(*command)
        assert code == (1 if command == ("check",) else 2)
        assert f"results/ar-tiny/ltm_pydocs/{copy_of_it.name}: a stray copy: its content belongs at" in text
        assert "delete this one" in text and "found" not in text and "changed after" not in text
    copy_of_it.unlink()
    assert said("check")[0] == 0


def test_lost_records_are_called_lost(said: Said, tmp_path: Path) -> None:
    path, _ = pair(tmp_path / "results")
    assert said("build")[0] == 0
    path.with_name(json.loads(path.read_bytes())["records"]["file"]).unlink()
    for command in COMMANDS:
        code, text = said(*command)
        assert code == (1 if command == ("check",) else 2)
        assert "its records are lost or damaged: there is no file results/ar-tiny/ltm_pydocs/" in text
        assert (
            f"delete {path.name} and run ltm-eval again: ltm-eval --model ar-tiny --tasks pydocs --output results"
            in text
        )
        assert "changed after" not in text and edited_digit(path) is None


def test_the_search_for_an_edited_digit_is_short_and_accuses_no_sound_file(tmp_path: Path) -> None:
    path = write_result(make_result(), tmp_path)
    assert edited_digit(path) is None
    path.write_text(path.read_text().replace('"tokens": 5100', '"tokens": 5200'))
    assert edited_digit(path) == "field scoring.tokens: expected 5100, found 5200"
    # As large as a result may be, and nothing but digits.
    config = {f"{i}": "1234567890" * 100 for i in range(190)}
    path = write_result(make_result(model={"config": config}), tmp_path)
    path.write_text(path.read_text().replace('"tokens": 5100', '"tokens": 5200'))
    began = time.process_time()
    assert edited_digit(path) is None
    assert time.process_time() - began < SECONDS
    # The digest of what is no JSON: 1.0 with another first digit is no number.
    data = to_dict(make_result())
    text = canonical_json(data).replace('"version":1.0', '"version":01.0').replace('"seed":0', '"seed":10', 1)
    path.write_text(json.dumps({**data, "digest": sha256(text.encode()).hexdigest()}))
    assert edited_digit(path) is None


def packed(rows: Any, *, level: int = 9) -> bytes:
    return gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), level, mtime=0)


BLOCKS = [{"block": i, "tokens": 255, "exact": -255 * 3.2} for i in range(20)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (packed(BLOCKS)[:-9], "a whole gzip file, found one that is cut off"),
        (packed(BLOCKS)[:5] + b"xxxx" + packed(BLOCKS)[9:40], "gzip"),
        (b"not gzip", "expected a gzip file, found something else"),
        (b"", "a whole gzip file"),
        (packed(BLOCKS) + b"more", "one gzip file, found more"),
        (gzip.compress(b"[1]\n", mtime=0), "line 1: expected an object"),
        (gzip.compress(b'{"block": 0}\n{"block": NaN}\n', mtime=0), "line 2: expected finite numbers, found NaN"),
        (gzip.compress(b"[" * 100_000, mtime=0), "line 1: expected at most 32 levels"),
        (gzip.compress(b"\n", mtime=0), "line 1: expected JSON"),
        (gzip.compress(b" " * (300 << 20), 1, mtime=0), "lines of at most 16,777,216 bytes"),
        (packed([]), "exact and tokens of every block, found less"),
        (packed([{**row, "tokens": 0} for row in BLOCKS]), "records that give token_perplexity"),
        (packed([{**row, "tokens": -255} for row in BLOCKS]), "records that give token_perplexity"),
        (packed([{**row, "tokens": "many"} for row in BLOCKS]), "records that give token"),
        (packed([{**row, "exact": [1.0]} for row in BLOCKS]), "records that give token_perplexity"),
        (packed([{**row, "exact": None} for row in BLOCKS]), "records that give token_perplexity"),
        (
            packed([{**row, "exact": -1e99} for row in BLOCKS]),
            "records that give token_perplexity, found others: Overflow",
        ),
        (packed([{"block": 0, "tokens": 5100}]), "exact and tokens of every block, found less"),
    ],
)
def test_damaged_records_are_refused(said: Said, tmp_path: Path, content: bytes, says: str) -> None:
    path, _ = pair(tmp_path / "results")
    records = path.with_name("hostile.jsonl.gz")
    records.write_bytes(content)
    edited(path, json.dumps({"file": records.name, "sha256": sha256(content).hexdigest()}), "records")
    began = time.process_time()
    code, text = said("show")
    assert code == 2 and says in text and len(text) < 2_000, text
    assert said("check")[0] == 1
    assert time.process_time() - began < 2 * SECONDS


# What reaches a terminal, a page, or a spreadsheet.


def test_no_escape_reaches_a_terminal(said: Said, tmp_path: Path) -> None:
    """From a file, a directory, an option, a page that is shown as a difference, or the manifest."""
    path, _ = pair(tmp_path / "results")
    assert said("build")[0] == 0
    page_file = tmp_path / "LEADERBOARD.md"
    page_file.write_text("\x1b[31m\u202e" + page_file.read_text())
    assert said("check") == (1, said("check")[1]) and "\x1b" not in said("check")[1]
    (tmp_path / "results" / "MANIFEST").write_text("\x1b[31m\u202e\n")
    path.rename(path.with_name("\x1b[31m\u202e\udcff.json"))
    for arguments in (
        ("check",),
        ("show",),
        ("show", "--results", "\x1b]0;\x07"),
        ("build", "--readme", "\x1b[2J"),
        ("compare", "\x1b[1m", "ar-small"),
    ):
        code, text = said(*arguments)
        assert code in (1, 2) and text.replace("\n", "").isprintable()


def test_names_are_neither_markup_nor_formulas(said: Said, tmp_path: Path) -> None:
    names = ["[/bold]", "[red]x", ":smile:", "=1+1", "\n=1+1", " \t@x", "-2", "+3", "＝4", "a|b"]
    for name in names:
        write_result(make_result(name=name, family="ar"), tmp_path / "results")
    code, text = said("build")
    assert code == 0 and all(name.strip() in text for name in names)
    assert said("compare", "[/bold]", "[red]x")[0] == 0
    with open("leaderboard.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "measured"]
    assert {row["model"] for row in rows} == {
        *("[/bold]", "[red]x", ":smile:", "'=1+1", "'@x", "'-2", "'+3", "'＝4", "a|b")
    }
    assert all(not text.lstrip().startswith(("=", "+", "-", "@")) for row in rows for text in row.values())
    assert {float(row["value"]) for row in rows} and all(row["n"] == "20" for row in rows)


def test_pages_mark_what_does_not_print() -> None:
    text = "a\x1b[31m\u202eb\r\nc\x00"
    for rendered in (escape(text), html_page._text(text), svg._text(text)):
        assert rendered == "a\ufffd[31m\ufffdb c\ufffd"


@pytest.mark.parametrize("values", [(1e99, 1e99), (1e99, 1.0000000001e99), (0.0, 5e-324), (-1e99, 1e99), (1.0,)])
@pytest.mark.parametrize("log", [True, False])
def test_axes_take_any_number(values: tuple[float, ...], log: bool) -> None:
    scale = svg._scale(Axis(label="x", log=log), [abs(v) for v in values] if log else values, 0, 100)
    assert all(-1e-6 <= scale.place(abs(value) if log else value) <= 100 + 1e-6 for value in values)


def test_a_terminal_without_unicode_gets_what_it_can_show(tmp_path: Path) -> None:
    pair(tmp_path / "results")
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    for command in COMMANDS[:2]:
        shown = subprocess.run(
            [sys.executable, "-m", "leaderboard.cli", *command], cwd=tmp_path, env=environment, capture_output=True
        )
        assert shown.returncode == 0, shown.stderr
        assert b"ar-small" in shown.stdout and shown.stdout.isascii() and shown.stderr == b""


def test_long_names_make_file_names_of_any_file_system() -> None:
    long = slug("a " * 400)
    assert len(long) == 80 and long != slug("a " * 401) and slug("A b") == "a-b"
