"""Tokens on disk: the same whether they were made at once or in several runs, in one shard or in many."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from ltm import files, tokenizer
from ltm.data.split import Split
from ltm.data.tokens import building
from ltm.data.tokens import tokenizer as of_corpus
from ltm.data.tokens.building import token_stream
from ltm.data.tokens.stream import TokenStream
from ltm.data.tokens.text import CorpusText
from ltm.text import cutting
from ltm.text.cutting import Piece

DRAWN = random.Random(0)
TEXTS = ["".join(DRAWN.choices(["heron ", "fish", "\n", "12", "'s", "。", " a ", "é"], k=n % 90)) for n in range(200)]
SPLIT = Split.of("birds", "train", TEXTS, unit="document", source={})
BPE = tokenizer.build("bpe-280", documents=TEXTS)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some twenty shards, of several batches, of several pieces."""
    monkeypatch.setattr(building, "SHARD_CHARACTERS", 1000)
    monkeypatch.setattr(cutting, "BATCH_CHARACTERS", 200)
    monkeypatch.setattr(cutting, "PIECE_CHARACTERS", 20)


def made(place: Path, *, separated: bool = False, joined: bool = False) -> TokenStream:
    return token_stream(SPLIT, BPE, separated=separated, joined=joined, cache_dir=place)


def expected(*, separated: bool = False, joined: bool = False) -> list[int]:
    if joined:
        return BPE.encode("".join(TEXTS)).tolist()
    ids = [token for text in TEXTS for token in ([BPE.eos_id] * separated + BPE.encode(text).tolist())]
    return ids[1:] if separated else ids


@pytest.mark.parametrize(("separated", "joined"), [(False, False), (True, False), (False, True)])
def test_shards_hold_the_tokens_of_the_whole(
    separated: bool, joined: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = made(tmp_path, separated=separated, joined=joined)
    assert len(list(stream.directory.glob("*.tokens"))) > 10
    monkeypatch.undo()
    whole = expected(separated=separated, joined=joined)
    assert stream[:].tolist() == whole and len(stream) == len(whole)
    # Any part of it, within a shard or across several.
    for _ in range(200):
        a, b = sorted(DRAWN.choices(range(-3, len(whole) + 3), k=2))
        assert stream[a:b].tolist() == whole[a:b]
    starts = DRAWN.choices(range(len(whole) - 700), k=9)
    assert stream.rows(starts, 700).tolist() == [whole[start : start + 700] for start in starts]
    with pytest.raises(ValueError, match="in order"):
        stream[::2]


def test_the_three_ways_to_encode_a_text_are_three_streams(tmp_path: Path) -> None:
    ways = [made(tmp_path), made(tmp_path, separated=True), made(tmp_path, joined=True)]
    assert len({stream.fingerprint for stream in ways}) == 3
    text, separated = CorpusText(SPLIT), CorpusText(SPLIT, separated=True)
    assert text.tokens(BPE).fingerprint == ways[2].fingerprint
    assert separated.tokens(BPE).fingerprint == ways[1].fingerprint
    assert text.tokens(BPE).directory.parent == files.home() / "tokens"


KILLED = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from ltm.data.tokens import building
    from ltm.text import cutting
    from tests.ltm.data import test_token_stream as test
    building.SHARD_CHARACTERS, cutting.BATCH_CHARACTERS, cutting.PIECE_CHARACTERS = 1000, 200, 20
    place, left, write = Path(sys.argv[1]), int(sys.argv[2]), building._write
    def stop_at_last(file, parts):
        global left
        left -= 1
        if left == 0:
            next(parts)
            file.with_name(f".{file.name}.{building.replacing.__name__}").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        return write(file, parts)
    building._write = stop_at_last
    test.made(place, separated=True)
""")


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_a_killed_run_is_gone_on_from_and_gives_the_same_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = made(tmp_path / "whole", separated=True)
    for shards in (4, 5):  # killed, gone on from, and killed again
        command = [sys.executable, "-c", KILLED, str(tmp_path / "broken"), str(shards)]
        assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
    directory = tmp_path / "broken" / whole.fingerprint
    assert len(list(directory.glob("[0-9]*.tokens"))) == 3 + 4
    encoded: list[Piece] = []
    encode_pieces = tokenizer.Tokenizer.encode_pieces

    def watched(self: tokenizer.Tokenizer, pieces: Sequence[Piece]) -> list[np.ndarray]:
        encoded.extend(pieces)
        return encode_pieces(self, pieces)

    monkeypatch.setattr(tokenizer.Tokenizer, "encode_pieces", watched)
    capsys.readouterr()
    resumed = made(tmp_path / "broken", separated=True)
    assert "going on after" in capsys.readouterr().err
    assert resumed.fingerprint == whole.fingerprint and resumed[:].tolist() == whole[:].tolist()
    manifests = [(stream.directory / "manifest.json").read_bytes() for stream in (whole, resumed)]
    assert manifests[0] == manifests[1]
    rest = sum(len(piece.text) for piece in encoded)
    assert 0 < rest < len("".join(TEXTS)) - 7 * 1000 + 100


@pytest.mark.parametrize("damage", ["shard", "cuts"])
def test_what_cannot_be_gone_on_from_is_begun_anew(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(tmp_path / "whole")
    write, left = building._write, [4]

    def stopped(file: Path, parts: object) -> dict[str, object]:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return write(file, parts)  # type: ignore[arg-type]

    monkeypatch.setattr(building, "_write", stopped)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "broken")
    monkeypatch.setattr(building, "_write", write)
    if damage == "shard":
        (tmp_path / "broken" / whole.fingerprint / "00001.tokens").write_bytes(b"damaged")
    else:
        monkeypatch.setattr(building, "SHARD_CHARACTERS", 700)
    assert made(tmp_path / "broken")[:].tolist() == whole[:].tolist()


def test_only_one_builds_and_the_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build: Callable[..., dict[str, object]] = building._build
    built = []

    def slow(*arguments: object) -> dict[str, object]:
        built.append(threading.get_ident())
        time.sleep(0.3)
        return build(*arguments)

    monkeypatch.setattr(building, "_build", slow)
    monkeypatch.setattr("ltm.files.turns._SILENT_SECONDS", 0.01)
    threads = [threading.Thread(target=made, args=(tmp_path,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert "waiting for another process, which is encoding birds/train with bpe-280" in capsys.readouterr().err


def test_without_locks_each_goes_on_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise NotImplementedError("no locks here")

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    assert made(tmp_path)[:].tolist() == expected()


def test_a_tokenizer_is_trained_once_on_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_corpus, "_KEPT_FROM_BYTES", 0)
    first = of_corpus.tokenizer_for(SPLIT, "bpe-280")
    assert first.fingerprint == BPE.fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(of_corpus, "build", lambda *_, **__: pytest.fail("trained again"))
        assert of_corpus.tokenizer_for(SPLIT, "bpe-280").fingerprint == BPE.fingerprint
    for file in (files.home() / "tokenizers").rglob("tokenizer.json"):
        file.write_text("{")
    assert of_corpus.tokenizer_for(SPLIT, "bpe-280").fingerprint == BPE.fingerprint
    assert of_corpus.tokenizer_for(SPLIT, "bpe-290").fingerprint != BPE.fingerprint
    assert of_corpus.tokenizer_for(SPLIT, "bytes").name == "bytes"
