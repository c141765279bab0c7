"""The example of another project's package, installed next to ours: what docs/extending.md says works, in that order.

The package is `docs/example_package`. No file of ours names it, and its entry points alone lead to it.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from ltm.result import Result, find_results, read_result
from tests.support.installed import install, run

ROOT = Path(__file__).parents[1]
PROJECT = ROOT / "docs" / "example_package"
BLOCK = 32
"""Tokens of a block of `letters-tiny`, and symbols of a text of `dice`."""


class Place:
    """A working directory next to which the package is installed."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.path = [directory / "installed", ROOT]
        install(PROJECT, self.path[0])

    def __call__(self, *command: str | Path) -> CompletedProcess[str]:
        return run(*command, path=self.path, cwd=self.directory)

    def succeed(self, *command: str | Path) -> CompletedProcess[str]:
        done = self(*command)
        assert done.returncode == 0, done.stderr
        return done

    def train(self, *more: str) -> None:
        self.succeed("-m", "ltm.train_cli", "letters-tiny", *more)

    def evaluate(self, tasks: str, *more: str) -> Result:
        """The one result that the command writes."""
        before = set(find_results(self.directory / "results"))
        self.succeed("-m", "tasks.cli", "--model", "letters-tiny", "--tasks", tasks, *more)
        (path,) = set(find_results(self.directory / "results")) - before
        return read_result(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    """With `letters-tiny` trained on `proverbs`."""
    found = Place(tmp_path_factory.mktemp("outside"))
    found.train("--corpus", "proverbs")
    return found


def text_of(place: Place, split: str) -> str:
    """A split of `proverbs`, asked for by name."""
    code = f"from ltm.data.corpora import load; print(''.join(load('proverbs', {split!r}).texts()), end='')"
    return place.succeed("-c", code).stdout


def test_the_contract_holds_of_its_family(place):
    done = place.succeed("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "--rootdir", PROJECT, PROJECT)
    assert int(done.stdout.split(" passed")[0].split()[-1]) > 40 and "skipped" not in done.stdout, done.stdout


def test_its_model_is_trained_on_its_corpus_and_scored(place):
    held_out = text_of(place, "validation")
    (place.directory / "held_out.txt").write_text(held_out)
    result = place.evaluate("text:held_out.txt")
    (found,) = [m for m in result.metrics if m.name == "token_perplexity"]
    # Counted are whole blocks. The tokenizer knows all bytes and EOS.
    text = text_of(place, "train").encode()
    seen = Counter(text[: len(text) // BLOCK * BLOCK])
    nats = -sum(math.log((seen[byte] + 0.5) / (seen.total() + 0.5 * 257)) for byte in held_out.encode())
    assert found.value == pytest.approx(math.exp(nats / len(held_out.encode())))
    assert (result.model["family"], found.kind, found.headline) == ("letters", "exact", True)


def test_its_corpus_is_a_task(place):
    assert place.evaluate("proverbs").data["corpus"] == "proverbs"


def test_its_kind_of_task_measures_and_is_recomputed(place):
    result = place.evaluate("cipher")
    (metric,) = result.metrics
    assert (metric.name, metric.headline) == ("cipher_accuracy", True) and 0.9 < metric.value <= 1
    (path,) = (place.directory / "results" / "letters-tiny" / "ltm_cipher").glob("*.json")
    # Its formula takes part in `check`: a number that the records do not give is found.
    code = (
        "import dataclasses, sys; from pathlib import Path; from ltm.result import *; "
        "path = Path(sys.argv[1]); result = read_result(path); (metric,) = result.metrics; "
        "wrong = dataclasses.replace(result, metrics=(dataclasses.replace(metric, value=0.25),)); "
        "print(write_result(wrong, Path('forged'), records=read_records(path, result)))"
    )
    place.succeed("-c", code, path)
    refused = place("-m", "leaderboard.cli", "check", "--results", "forged")
    assert refused.returncode == 1 and "cipher_accuracy, None): expected" in refused.stderr + refused.stdout


def test_its_model_writes(place):
    result = place.evaluate("generation", "--samples", "4")
    assert result.scoring["blocks"] == 4


def test_its_model_is_audited_on_its_source(place):
    place.train("--corpus", "dice", "--output", "on-dice")
    result = place.evaluate("audit", "--checkpoint", "on-dice", "--limit-blocks", "64")
    assert result.data["corpus"] == "dice" and result.data["source"]["length"] == BLOCK
    found = {m.name: m.value for m in result.metrics}
    assert found["audit_passed"] == 1
    entropy = -sum(k / 21 * math.log(k / 21) for k in range(1, 7))
    assert found["audit_source_entropy_per_token"] == pytest.approx(entropy, rel=0.01)
    assert found["audit_claimed_nats_per_token"] > found["audit_source_nats_per_token"] - 0.01


def test_its_source_has_settings(place):
    code = "from ltm.known_sources.base import from_settings; print(from_settings({!r}).entropy().nats_per_text)"
    said = place.succeed("-c", code.format("dice:sides=2,length=3")).stdout
    assert float(said) == pytest.approx(3 * (math.log(3) - 2 / 3 * math.log(2)))
    refused = place("-m", "ltm.train_cli", "letters-tiny", "--corpus", "dice:sides=1", "--output", "on-nothing")
    assert refused.returncode == 2 and "sides must be from 2 to 26" in refused.stderr


def test_its_names_are_among_the_known_ones(place):
    for command, known in (
        (("-m", "ltm.train_cli", "leters-tiny", "--corpus", "proverbs"), "letters-tiny"),
        (("-m", "ltm.train_cli", "letters-tiny", "--corpus", "proverb"), "proverbs"),
    ):
        refused = place(*command)
        assert refused.returncode == 2 and known in refused.stderr, refused.stderr


def test_its_model_has_a_row_on_the_board(place):
    (place.directory / "one.txt").write_text("a stitch in time\n" * 20)
    place.evaluate("text:one.txt")
    place.succeed("-m", "leaderboard.cli", "build", "--results", "results", "--out", "LEADERBOARD.md")
    assert "letters-tiny" in (place.directory / "LEADERBOARD.md").read_text()


def test_commands_start(place):
    for command in ("ltm.train_cli", "tasks.cli", "leaderboard.cli"):
        assert "usage" in place.succeed("-m", command, "--help").stdout
