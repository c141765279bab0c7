"""Streams that hold every token once, and an order that depends on seed and index only."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from ltm.data.corpora import load
from ltm.data.split import Split
from ltm.data.token_dataset import TokenDataset
from ltm.errors import UserError
from ltm.tokenizer import Tokenizer, build

BYTES = build("bytes")
SENTENCE = "the heron waits and the fish hide under a willow by the slow brown river"
DOCUMENTS = [SENTENCE[n % 7 : n % 7 + 5 * (n % 9) + 1] + "\n" for n in range(60)]


def split_of(documents: list[str], detokenizer: str | None = None) -> Split:
    return Split.of("birds", "train", documents, unit="line", source={}, detokenizer=detokenizer)


def dataset(
    cache: Path,
    documents: list[str] = DOCUMENTS,
    *,
    length: int = 16,
    eos: bool = False,
    tokenizer: Tokenizer = BYTES,
) -> TokenDataset:
    return TokenDataset.build(
        split_of(documents), tokenizer, block_length=length, eos_between_documents=eos, cache_dir=cache
    )


def test_the_stream_is_the_text(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    assert BYTES.decode_bytes(data.stream) == "".join(DOCUMENTS).encode()
    assert data.tokens == sum(map(len, DOCUMENTS)) == data.blocks * 16 + data.remainder
    assert data.stream.dtype == np.dtype("<u2") and not data.stream.flags.writeable


def test_eos_stands_between_documents_and_nowhere_else(tmp_path: Path) -> None:
    stream = dataset(tmp_path, eos=True).stream
    ends = np.flatnonzero(stream == BYTES.eos_id)
    parts = np.split(stream, ends)
    assert [BYTES.decode(part) for part in parts] == DOCUMENTS
    assert len(ends) == len(DOCUMENTS) - 1
    assert len(dataset(tmp_path, ["one", "", "three" * 9], eos=True).stream) == 3 + 45 + 2


def test_documents_are_encoded_by_themselves_and_detokenised(tmp_path: Path) -> None:
    trained = build("bpe-264", documents=DOCUMENTS)
    data = dataset(tmp_path, tokenizer=trained)
    assert data.stream.tolist() == [token for text in DOCUMENTS for token in trained.encode(text)]
    rows = split_of([" the N herons \n"] * 9, detokenizer="ptb")
    read = TokenDataset.build(rows, BYTES, block_length=8, eos_between_documents=False, cache_dir=tmp_path)
    assert BYTES.decode(read.stream) == "the 1 herons\n" * 9


@pytest.mark.parametrize("length", [1, 7, 16, 100])
def test_an_epoch_has_every_block_once(tmp_path: Path, length: int) -> None:
    data = dataset(tmp_path, length=length)
    blocks = data.stream[: data.blocks * length].reshape(-1, length).astype(int).tolist()
    for epoch in range(3):
        tokens, indices = data.batch(epoch * data.blocks, data.blocks, seed=5)
        assert tokens.dtype == torch.int64 and tokens.shape == (data.blocks, length)
        assert indices == list(range(epoch * data.blocks, (epoch + 1) * data.blocks))
        assert Counter(map(tuple, tokens.tolist())) == Counter(map(tuple, blocks))


def test_batches_do_not_depend_on_their_size_or_on_what_came_before(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    total = 2 * data.blocks + 5
    whole, _ = data.batch(0, total, seed=1)
    for size in (1, 2, 7, data.blocks):
        parts = [data.batch(first, min(size, total - first), seed=1)[0] for first in range(0, total, size)]
        assert torch.equal(torch.cat(parts), whole)
    # Two ranks, each taking its half of every batch, in a process that never saw what came before.
    fresh = dataset(tmp_path)
    start = data.blocks - 3
    halves = [fresh.batch(start + 4 * rank, 4, seed=1)[0] for rank in (1, 0)]
    assert torch.equal(torch.cat(halves[::-1]), whole[start : start + 8])


def test_seeds_and_epochs_give_different_orders(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    n = data.blocks
    orders = [data.batch(first, n, seed=seed)[0] for first, seed in ((0, 0), (0, 1), (n, 0))]
    in_order = torch.from_numpy(data.stream[: n * 16].reshape(n, 16).astype(np.int64))
    for i, one in enumerate([*orders, in_order]):
        for other in [*orders, in_order][:i]:
            assert not torch.equal(one, other)


def test_the_order_is_pinned(tmp_path: Path) -> None:
    # Resumed runs and published tables rely on it: it may not change with versions of the packages below us.
    data = dataset(tmp_path, ["abcdefghij"], length=1)
    assert "".join(BYTES.decode(row.tolist()) for row in data.batch(0, 20, seed=0)[0]) == "gidhjafebcghebcijadf"


def test_streams_are_kept_and_checked(tmp_path: Path) -> None:
    first = dataset(tmp_path)
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert set(written) == {first.file.name, first.file.with_suffix(".json").name}
    again = dataset(tmp_path, length=5)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written
    assert again.fingerprint == first.fingerprint and np.array_equal(again.stream, first.stream)
    damaged = bytearray(first.file.read_bytes())
    damaged[11] ^= 1
    first.file.write_bytes(damaged)
    with pytest.raises(UserError, match=r"damaged: expected sha256 \w+, found \w+; remove .*\.json to build it anew"):
        dataset(tmp_path)
    first.file.with_suffix(".json").unlink()
    assert BYTES.decode_bytes(dataset(tmp_path).stream) == "".join(DOCUMENTS).encode()
    first.file.unlink()
    assert dataset(tmp_path).tokens == again.tokens
    first.file.with_suffix(".json").write_text("{")
    with pytest.raises(UserError, match="cannot read the token cache"):
        dataset(tmp_path)


def test_whatever_changes_the_stream_changes_the_fingerprint(tmp_path: Path) -> None:
    trained = build("bpe-264", documents=DOCUMENTS)
    found = {
        dataset(tmp_path).fingerprint,
        dataset(tmp_path, eos=True).fingerprint,
        dataset(tmp_path, tokenizer=trained).fingerprint,
        dataset(tmp_path, DOCUMENTS[1:]).fingerprint,
    }
    assert len(found) == 4


def test_too_little_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 9 tokens under bytes, fewer than the 10 of one block; use more text"):
        dataset(tmp_path, ["nine byte"], length=10)
    assert dataset(tmp_path, ["nine byte"], length=9).blocks == 1


class WrongIds(Tokenizer):
    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array([1, 256], np.int32)]


def test_ids_that_no_text_has_are_refused(tmp_path: Path) -> None:
    wrong = WrongIds(BYTES._vocab, [])
    with pytest.raises(UserError, match=r"gave token ids 1 \.\. 256, but those of text are 0 \.\. 255"):
        dataset(tmp_path, tokenizer=wrong)
    assert not list(tmp_path.iterdir())


class ManyIds(Tokenizer):
    vocab_size = 70_000
    eos_id = 69_998

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.arange(65_530, 65_545, dtype=np.int32) for _ in texts]


def test_large_vocabularies_take_wider_tokens(tmp_path: Path) -> None:
    data = dataset(tmp_path, ["any"], tokenizer=ManyIds(BYTES._vocab, []), length=5)
    assert data.stream.dtype == np.dtype("<u4")
    assert data.stream.tolist() == list(range(65_530, 65_545))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write the token cache .*name another directory"):
        dataset(tmp_path / "file" / "cache")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        dataset(tmp_path)
    assert not list(tmp_path.iterdir())


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="block_length"):
        dataset(tmp_path, length=0)
    data = dataset(tmp_path)
    for first, count in ((-1, 1), (0, 0)):
        with pytest.raises(ValueError, match="found"):
            data.batch(first, count, seed=0)


def test_builders_at_the_same_time_agree(tmp_path: Path) -> None:
    barrier = threading.Barrier(4)

    def run(_: int) -> TokenDataset:
        barrier.wait()
        return dataset(tmp_path, DOCUMENTS * 50, eos=True)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, range(4)))
    assert len({(data.fingerprint, data.stream.tobytes()) for data in found}) == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_a_builder_killed_half_way_leaves_no_stream(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from ltm.data import token_dataset as dataset
        from ltm.data.corpora import load
        from ltm.tokenizer import build
        place = sys.argv[2]
        if place == "tokens":
            os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        else:
            dataset.write_atomically = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        dataset.TokenDataset.build(load("pydocs", "validation"), build("bytes"), block_length=64,
                                   eos_between_documents=False, cache_dir=Path(sys.argv[1]))
    """)
    if os.name == "nt":
        pytest.skip("no SIGKILL")
    split = load("pydocs", "validation")
    places = ("tokens", "description")
    runs = {place: subprocess.Popen([sys.executable, "-c", program, str(tmp_path / place), place]) for place in places}
    for place in places:
        cache = tmp_path / place
        assert runs[place].wait(timeout=60) == -9
        assert not list(cache.glob("*.json"))
        data = TokenDataset.build(split, BYTES, block_length=64, eos_between_documents=False, cache_dir=cache)
        assert BYTES.decode_bytes(data.stream) == "".join(split.documents).encode()
        assert {path.suffix for path in cache.iterdir()} == {".tokens", ".json"}


def test_what_a_killed_builder_left_goes_though_the_stream_is_there(tmp_path: Path) -> None:
    file = dataset(tmp_path).file
    left = tmp_path / f".{file.name}.abcd_123.tmp"  # as earlier versions named them
    left.write_bytes(b"x")
    dataset(tmp_path)
    assert left.exists()  # its writer may be alive
    os.utime(left, (0, time.time() - 2 * 86_400))
    dataset(tmp_path)
    assert not left.exists()


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_streams_are_for_whom_the_umask_says(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        dataset(tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~mask}
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "content",
    [
        "null",
        "[" * 100_000,
        '{"sha256": 1}',
        '{"sha256": "\\u001b[31m", "tokens": 1}',
        '{"sha256": [], "tokens": 1e99}',
    ],
)
def test_odd_descriptions_are_said(content: str, tmp_path: Path) -> None:
    description = dataset(tmp_path).file.with_suffix(".json")
    description.write_text(content)
    with pytest.raises(UserError, match=r"remove .*\.json to build it anew") as error:
        dataset(tmp_path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("tokens", ["-1", "1", "true", "null", "99999999999", '"10"'])
def test_another_number_of_tokens_is_said(tokens: str, tmp_path: Path) -> None:
    description = dataset(tmp_path).file.with_suffix(".json")
    written = json.loads(description.read_text())
    description.write_text(json.dumps({**written, "tokens": json.loads(tokens)}))
    with pytest.raises(UserError, match=r"is damaged: expected .* tokens, found \d+; remove .*\.json"):
        dataset(tmp_path)
