"""What identifies texts, tokens and their order is what it was when results and checkpoints were made."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from ltm import tokenizer
from ltm.data.corpora import load, load_file
from ltm.data.reading import Reading
from ltm.data.token_dataset import TokenDataset

TEXT = "the heron waits and no fish is here é 😀 today under a willow by the slow brown river it's N <unk> @-@"
WORDS = TEXT.split()


def line(n: int) -> str:
    return " " + " ".join(WORDS[(n * k + k * k) % len(WORDS)] for k in range(3 + n % 11)) + " \n"


LINES = "".join(line(n) for n in range(300)) + "\nlast line\u2028 without end"
ROWS = ["".join(line(n * 7 + k) for k in range(n % 5)).strip() for n in range(60)]

# Of each text: fingerprint, bytes, words, documents, unit. Of its tokens by `bytes` and `bpe-300`, each without and
# with EOS: the beginnings of the tokenizer's and the stream's fingerprint, the number of tokens, and the beginnings of
# the sha256 of the stream and of the first four blocks of 16 in the order of seed 3. By the code before this test.
PINNED = {
    "birds/train": (
        ("159c8365e1ccc5bd", 11448, 2392, 302, "line"),
        ("97781951", "df8bfeae", 11448, "fa6506d0", "5b4b7726"),
        ("97781951", "fb07c0a6", 11749, "a0ec5b95", "c5e20c15"),
        ("3c8bba60", "9f7146a3", 4779, "34d9632e", "7565f978"),
        ("3c8bba60", "36103fa2", 5080, "f8355c8d", "95b6e942"),
    ),
    "birds/docs": (
        ("728024ebd61cc4cb", 4422, 965, 60, "document"),
        ("97781951", "608c7b1f", 4422, "4a645a19", "f07f3121"),
        ("97781951", "3eb2714f", 4481, "5c42a015", "122f5311"),
        ("1e11d738", "4bce19cc", 1854, "df0d8157", "fd002bff"),
        ("1e11d738", "2badfb74", 1913, "7ca7e443", "280dd3ce"),
    ),
    "ptb/validation": (
        ("1932ef7693954ee3", 11448, 2392, 302, "line"),
        ("97781951", "e15521bc", 10480, "159b40f7", "b274224e"),
        ("97781951", "7f15c0f7", 10781, "75f69799", "bcf36224"),
        ("07e65cbd", "75e98a51", 4416, "67a1f209", "0e5a66c2"),
        ("07e65cbd", "ca95ddf5", 4717, "63b5db8d", "d2e06816"),
    ),
    "wikitext/validation": (
        ("a7276e058584e38c", 11448, 2392, 303, "line"),
        ("97781951", "ec280927", 10793, "74afe496", "569d1164"),
        ("97781951", "f85158d9", 11095, "c1fe0096", "6549c2cb"),
        ("6444dbe5", "e62909ed", 4530, "8d080ea2", "249a4f96"),
        ("6444dbe5", "6f47c216", 4832, "d78f8aed", "bd5f7c53"),
    ),
    "lm1b/validation": (
        ("766e817ec87ca386", 11448, 2392, 302, "line"),
        ("97781951", "988829f1", 11448, "fa6506d0", "5b4b7726"),
        ("97781951", "fa3dcbeb", 11749, "a0ec5b95", "c5e20c15"),
        ("3c8bba60", "7a173e3e", 4779, "34d9632e", "7565f978"),
        ("3c8bba60", "723438b6", 5080, "f8355c8d", "95b6e942"),
    ),
}
SAME = {"birds/crlf": "birds/train", "birds/rows": "birds/docs", "birds/shards": "birds/docs"}


def jsonl(rows: list[str]) -> bytes:
    return "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    files = {
        "birds/train.txt.xz": lzma.compress(LINES.encode()),
        "birds/crlf.txt.gz": gzip.compress(LINES.replace("\n", "\r\n").encode()),
        "birds/docs.jsonl": jsonl(ROWS),
        "birds/shards/a-00001-of-00003.jsonl": jsonl(ROWS[:20]),
        "birds/shards/a-00002-of-00003.jsonl.gz": gzip.compress(jsonl(ROWS[20:21])),
        "birds/shards/a-00003-of-00003.jsonl.xz": lzma.compress(jsonl(ROWS[21:])),
        "ptb/validation.txt": LINES.encode(),
        "wikitext/validation.jsonl": jsonl(LINES.splitlines(keepends=True)),
        "lm1b/validation.txt": LINES.encode(),
    }
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    pyarrow.parquet.write_table(pyarrow.table({"text": ROWS}), root / "birds/rows.parquet")
    return root


@pytest.mark.parametrize("name", [*PINNED, *SAME])
def test_texts_tokens_and_order(name: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_TRAINING_CHARACTERS", 5000)  # so that a sample is taken
    reading = Reading(newlines="universal" if name == "birds/crlf" else "kept")
    split = load(*name.split("/"), data_dir=data, reading=reading)
    found: list[tuple[object, ...]] = [
        (split.fingerprint[:16], split.bytes, split.words, len(split.documents), split.unit)
    ]
    for kind in ("bytes", "bpe-300"):
        made = tokenizer.build(kind, documents=split.texts())
        for eos in (False, True):
            tokens = TokenDataset.build(split, made, block_length=16, eos_between_documents=eos, cache_dir=tmp_path)
            digests = [
                hashlib.sha256(content).hexdigest()[:8]
                for content in (tokens.stream[:].tobytes(), tokens.batch(0, 4, seed=3)[0].numpy().tobytes())
            ]
            found.append((made.fingerprint[:8], tokens.fingerprint[:8], tokens.tokens, *digests))
    assert tuple(found) == PINNED[SAME.get(name, name)]


def test_a_file_by_itself(data: Path) -> None:
    split = load_file(data / "birds/docs.jsonl")
    assert (split.fingerprint[:16], split.corpus, split.unit) == ("728024ebd61cc4cb", "text_docs", "document")
