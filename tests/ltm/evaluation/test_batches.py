"""Too little memory: batches are halved, said aloud and without an effect on numbers; one too large ends in advice."""

from __future__ import annotations

import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ltm.api import Sampling
from ltm.errors import UserError, out_of_memory, run_command
from ltm.evaluation import memory
from ltm.evaluation.rows import Prompt, Row
from ltm.evaluation.runner import Runner
from tests.support.harness_models import BigramConfig, NoisyBigram, loaded

ERRORS = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
)


class Narrow(NoisyBigram):
    """A model that has memory for so many sequences at once."""

    most, error = 3, ERRORS[0]

    def log_likelihoods(self, tokens_BL, **options):
        """The likelihoods, of few."""
        if len(tokens_BL) > self.most:
            raise self.error
        return super().log_likelihoods(tokens_BL, **options)

    def generate(self, prompts, **options):
        """The continuations, of few."""
        if len(prompts) > self.most:
            raise self.error
        return super().generate(prompts, **options)


def runner(cls: type[NoisyBigram], batch_size: int | None = 8) -> Runner:
    return Runner(loaded(cls(BigramConfig())), seed=0, draws=2, dtype="float32", batch_size=batch_size)


ROWS = [Row(record=f"r{n}", tokens=np.arange(n, n + 5 + n % 3, dtype=np.int32), context=0, index=n) for n in range(11)]
PROMPTS = [
    Prompt(record=f"p{n}", tokens=[n], new_tokens=4, sampling=Sampling(temperature=1.0), index=n) for n in range(11)
]


def plain(records):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_batches_are_halved_and_numbers_are_the_same(error, tmp_path, monkeypatch, caplog):
    whole = runner(NoisyBigram)
    whole.cache_at = tmp_path / "whole"
    expected = whole.score("t", ROWS, companions=True), whole.generations("t", PROMPTS)
    monkeypatch.setattr(Narrow, "error", error)
    narrow = runner(Narrow)
    narrow.cache_at = tmp_path / "narrow"
    with caplog.at_level(logging.WARNING):
        found = narrow.score("t", ROWS, companions=True)
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory on cpu: going on with batches of 4",
        "out of memory on cpu: going on with batches of 2",
    ]
    assert plain(found) == plain(expected[0])
    caplog.clear()
    assert plain(narrow.generations("t", PROMPTS)) == plain(expected[1])
    assert caplog.records == [] and narrow.scorer.batch_size == 2


def test_a_single_sequence_too_large_is_a_users_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Narrow, "most", 0)
    narrow = runner(Narrow)
    narrow.cache_at = tmp_path
    for work in (lambda: narrow.score("t", ROWS, companions=True), lambda: narrow.generations("t", PROMPTS)):
        with pytest.raises(UserError) as caught:
            work()
        assert "batch of one: CUDA out of memory. Tried to allocate 2.00 GiB." in str(caught.value)
        assert "--device" in str(caught.value) and "\n" not in str(caught.value)


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(Narrow, "error", RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    narrow = runner(Narrow)
    narrow.cache_at = tmp_path
    with pytest.raises(RuntimeError, match="shapes"):
        narrow.score("t", ROWS, companions=True)
    assert not out_of_memory(ValueError("out of memory"))


def test_commands_end_without_a_traceback(capsys):
    def main(error: Exception):
        raise error

    for error in ERRORS:
        assert run_command(lambda error=error: main(error)) == 2
        printed = capsys.readouterr().err
        assert "error: out of memory: " in printed and "smaller batch" in printed and printed.count("\n") == 1
    with pytest.raises(RuntimeError, match="shapes"):
        run_command(lambda: main(RuntimeError("shapes")))


class Hungry(NoisyBigram):
    """A model that takes 20 MB for each sequence."""

    def log_likelihoods(self, tokens_BL, **options):
        """The likelihoods, and much ado about them."""
        torch.ones(len(tokens_BL), 5 * 2**20).add_(1)
        return super().log_likelihoods(tokens_BL, **options)


def in_little_memory(batch_size: str) -> None:
    """Score with 400 MB more than the process has, where a batch of 64 takes 1.3 GB."""
    logging.basicConfig(format="%(message)s")
    some = runner(Hungry, int(batch_size) or None)
    some.cache_at = Path(tempfile.mkdtemp())
    torch.ones(1).log_softmax(0)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + 400 * 10**6,) * 2)
    found = some.score("t", MANY, companions=True)
    print(json.dumps([plain(found), some.scorer.batch_size]))


MANY = [Row(record=f"r{n}", tokens=np.arange(n, n + 5, dtype=np.int32), context=0, index=n) for n in range(100)]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("batch_size", [64, 0])
def test_an_evaluation_with_too_little_memory_finishes_by_shrinking(batch_size, tmp_path):
    """A batch size that was asked for meets the limit of the operating system; the automatic one stays below it."""
    code = f"from tests.ltm.evaluation import test_batches as t; t.in_little_memory({str(batch_size)!r})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | ONE_THREAD)
    assert run.returncode == 0, run.stderr
    records, rows = json.loads(run.stdout)
    whole = runner(NoisyBigram, 64)
    whole.cache_at = tmp_path
    assert records == plain(whole.score("t", MANY, companions=True))
    if batch_size:
        assert "out of memory on cpu: going on with batches of 16" in run.stderr and rows <= 16
    else:
        assert "a row takes 0.02 GB: batches of" in run.stderr and "out of memory" not in run.stderr
        assert 8 <= rows <= 20


ONE_THREAD = {"OMP_NUM_THREADS": "1"}


def test_what_work_takes_is_measured():
    device = torch.device("cpu")
    taken = memory.peak_bytes(device, lambda: torch.ones(50 * 2**20).sum())
    assert taken is None or 180e6 < taken < 300e6
    free = memory.free_bytes(device)
    assert free is None or free > 1e8
