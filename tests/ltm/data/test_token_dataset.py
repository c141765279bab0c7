"""Streams that hold every token once, and an order that depends on seed and index only."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from ltm.data.corpora import load
from ltm.data.split import Split
from ltm.data.token_dataset import TokenDataset
from ltm.data.tokens import stream
from ltm.errors import UserError
from ltm.files import stamps
from ltm.text.cutting import Piece
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
    assert BYTES.decode_bytes(data.stream[:]) == "".join(DOCUMENTS).encode()
    assert data.tokens == sum(map(len, DOCUMENTS)) == data.blocks * 16 + data.remainder
    assert data.stream.dtype == np.dtype("<u2") and not data.stream[:].flags.writeable


def test_eos_stands_between_documents_and_nowhere_else(tmp_path: Path) -> None:
    stream = dataset(tmp_path, eos=True).stream[:]
    ends = np.flatnonzero(stream == BYTES.eos_id)
    parts = np.split(stream, ends)
    assert [BYTES.decode(part) for part in parts] == DOCUMENTS
    assert len(ends) == len(DOCUMENTS) - 1
    assert len(dataset(tmp_path, ["one", "", "three" * 9], eos=True).stream) == 3 + 45 + 2


def test_documents_are_encoded_by_themselves_and_detokenised(tmp_path: Path) -> None:
    trained = build("bpe-264", documents=DOCUMENTS)
    data = dataset(tmp_path, tokenizer=trained)
    assert data.stream[:].tolist() == [token for text in DOCUMENTS for token in trained.encode(text)]
    rows = split_of([" the N herons \n"] * 9, detokenizer="ptb")
    read = TokenDataset.build(rows, BYTES, block_length=8, eos_between_documents=False, cache_dir=tmp_path)
    assert BYTES.decode(read.stream[:]) == "the 1 herons\n" * 9


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


def shard(data: TokenDataset, number: int = 0) -> Path:
    return data.stream.directory / f"{number:05}.tokens"


def manifest(data: TokenDataset) -> Path:
    return data.stream.directory / "manifest.json"


def test_streams_are_kept_and_checked(tmp_path: Path) -> None:
    first = dataset(tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert {path.name for path in written} == {first.fingerprint, "00000.tokens", "manifest.json", "lock"}
    again = dataset(tmp_path, length=5)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written
    assert again.fingerprint == first.fingerprint and np.array_equal(again.stream[:], first.stream[:])
    damaged = bytearray(shard(first).read_bytes())
    damaged[11] ^= 1
    shard(first).write_bytes(damaged)
    with pytest.raises(UserError, match=r"damaged: expected sha256 \w+, found \w+; remove .* to build it anew"):
        dataset(tmp_path)
    shutil.rmtree(first.stream.directory)
    assert BYTES.decode_bytes(dataset(tmp_path).stream[:]) == "".join(DOCUMENTS).encode()
    shard(first).unlink()
    with pytest.raises(UserError, match="cannot read the tokens"):
        dataset(tmp_path)
    manifest(first).write_text("{")
    with pytest.raises(UserError, match="cannot read the tokens"):
        dataset(tmp_path)


def test_what_was_verified_is_read_again_only_once_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    def sha256_file(path: Path) -> str:
        taken.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(stream, "sha256_file", sha256_file)
    first = dataset(tmp_path)
    dataset(tmp_path)
    assert len(taken) == 2  # a file that has just been written might be written again in the same tick of its clock
    monkeypatch.setattr(stamps, "SETTLED_SECONDS", -1.0)
    for _ in range(3):
        dataset(tmp_path)
    assert len(taken) == 3
    before = shard(first).stat()
    content = shard(first).read_bytes()
    shard(first).write_bytes(bytes([content[0] ^ 1]) + content[1:])
    os.utime(shard(first), ns=(before.st_atime_ns, before.st_mtime_ns))  # the same size and time of change, set by hand
    with pytest.raises(UserError, match="damaged"):
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
    """Gives 1 and `wrong` for every text; its EOS is 256, and its BOS 257."""

    wrong = 257

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        return [np.array([1, self.wrong], np.int32)] * len(pieces)


def test_ids_that_no_text_has_are_refused(tmp_path: Path) -> None:
    wrong = WrongIds(BYTES._vocab, [])
    with pytest.raises(UserError, match=r"gave token ids 1 \.\. 257, but those of text are 0 \.\. 256"):
        dataset(tmp_path, tokenizer=wrong)
    wrong.wrong = 256
    with pytest.raises(UserError, match="gave 256, the token that ends a document, in the middle of one"):
        dataset(tmp_path, tokenizer=wrong, eos=True)
    assert not [*tmp_path.rglob("*.tokens"), *tmp_path.rglob("*.json")]


class Lossy(Tokenizer):
    def encode_pieces(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        return super().encode_pieces([Piece(piece.text.replace("  ", " "), piece.first) for piece in pieces])


def test_a_text_that_its_tokens_do_not_give_back_is_refused(tmp_path: Path) -> None:
    lossy = Lossy(BYTES._vocab, [])
    with pytest.raises(UserError, match="bytes does not give the text back: expected ' b', found 'b'"):
        dataset(tmp_path, ["a  b"], tokenizer=lossy, length=1)
    assert dataset(tmp_path, ["a b"], tokenizer=lossy, length=1).tokens == 3


class ManyIds(Tokenizer):
    vocab_size = 70_000
    eos_id = 69_998

    def encode_pieces(self, pieces: Sequence[Piece]) -> list[np.ndarray]:
        return [np.arange(65_530, 65_545, dtype=np.int32) for _ in pieces]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"any"


def test_large_vocabularies_take_wider_tokens(tmp_path: Path) -> None:
    data = dataset(tmp_path, ["any"], tokenizer=ManyIds(BYTES._vocab, []), length=5)
    assert data.stream.dtype == np.dtype("<u4")
    assert data.stream[:].tolist() == list(range(65_530, 65_545))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*another directory"):
        dataset(tmp_path / "file" / "cache")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        dataset(tmp_path)
    assert not [*tmp_path.rglob("*.tokens"), *tmp_path.rglob("*.json")]


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
    assert len({(data.fingerprint, data.stream[:].tobytes()) for data in found}) == 1
    assert len(list(tmp_path.rglob("*.tokens"))) == 1


def test_a_builder_killed_half_way_leaves_no_stream(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import os, signal, sys
        from pathlib import Path
        from ltm.data import token_dataset as dataset
        from ltm.data.corpora import load
        from ltm.data.tokens import building
        from ltm.tokenizer import build
        place = sys.argv[2]
        if place == "tokens":
            os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        else:
            building.write_atomically = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
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
        assert not list(cache.rglob("*.json"))
        data = TokenDataset.build(split, BYTES, block_length=64, eos_between_documents=False, cache_dir=cache)
        assert BYTES.decode_bytes(data.stream[:]) == "".join(split.documents).encode()
        assert {path.suffix for path in cache.rglob("*.*")} == {".tokens", ".json"}


def test_what_a_killed_builder_left_goes_though_the_stream_is_there(tmp_path: Path) -> None:
    file = shard(dataset(tmp_path))
    left = file.with_name(f".{file.name}.00000000-1-00000000.tmp")  # of another host
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
    written = [*tmp_path.rglob("*.tokens"), *tmp_path.rglob("*.json")]
    assert {path.stat().st_mode & 0o777 for path in written} == {0o666 & ~mask} and len(written) == 2


@pytest.mark.parametrize(
    "content",
    [
        "null",
        "[" * 100_000,
        '{"sha256": 1}',
        '{"complete": true, "shards": 1}',
        '{"complete": true, "shards": [1]}',
        '{"complete": true, "shards": [{"sha256": "\\u001b[31m", "tokens": 1}]}',
        '{"complete": true, "shards": [{"sha256": [], "tokens": 1e99}]}',
    ],
)
def test_odd_manifests_are_said(content: str, tmp_path: Path) -> None:
    file = manifest(dataset(tmp_path))
    file.write_text(content)
    with pytest.raises(UserError, match=r"remove .* to build it anew") as error:
        dataset(tmp_path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("tokens", ["-1", "1", "true", "null", "99999999999", '"10"'])
def test_another_number_of_tokens_is_said(tokens: str, tmp_path: Path) -> None:
    file = manifest(dataset(tmp_path))
    written = json.loads(file.read_text())
    written["shards"][0]["tokens"] = json.loads(tokens)
    file.write_text(json.dumps(written))
    with pytest.raises(UserError, match=r"are damaged: expected .* tokens, found \d+; remove .*"):
        dataset(tmp_path)
