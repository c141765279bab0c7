"""Documents in files: a sequence like any other, read for each pass, and counted once for all starts."""

from __future__ import annotations

import gzip
import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ltm import files, hub
from ltm.data import local_files, tally
from ltm.data.corpora import available, load, load_file
from ltm.data.documents import Documents, chained
from ltm.data.reading import Reading
from ltm.errors import UserError
from ltm.files import stamps

TEXTS = ["one", "", "three", "four"]


def of(texts: list[str]) -> Documents:
    return Documents(lambda: iter(texts))


@pytest.mark.parametrize("index", [slice(None), slice(1), slice(1, None), slice(1, 3), slice(-2, None), slice(-3, -1)])
def test_a_sequence_like_any_other(index: slice) -> None:
    documents = of(TEXTS)
    assert documents == TEXTS and len(documents) == 4 and list(documents) == list(documents)
    assert documents[index] == TEXTS[index] and len(documents[index]) == len(TEXTS[index])
    assert [documents[n] for n in range(-4, 4)] == TEXTS * 2
    for beyond in (4, -5):
        with pytest.raises(IndexError):
            documents[beyond]
    assert documents != TEXTS[1:] and documents != [*TEXTS[:3], "five"] and documents != "onethreefour"
    assert chained([documents, documents[:2]]) == TEXTS + TEXTS[:2]
    assert documents.map(str.upper) == [text.upper() for text in TEXTS]


def test_only_a_document_is_held(tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    with open(file, "w") as out:
        for n in range(400):
            out.write(json.dumps({"text": f"{n} " * 20_000}) + "\n")
    split = load_file(file)
    tracemalloc.start()
    assert sum(map(len, split.texts())) == split.bytes > 20_000_000
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


def test_a_file_that_changes_while_it_is_in_use_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\ntwo\n")
    split = load_file(file)
    with open(file, "a") as more:
        more.write("three\n")
    with pytest.raises(UserError, match=r"a\.txt was written to while it was in use"):
        list(split.documents)
    assert len(load_file(file).documents) == 3
    file.unlink()
    with pytest.raises(UserError, match=r"cannot read .*a\.txt"):
        list(split.documents)


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The files that are opened; all are large enough and old enough for their tallies to be kept."""
    found: list[Path] = []
    opened = local_files.opened

    def watched(file: Path, *args: Any, **options: Any) -> Any:
        found.append(file)
        return opened(file, *args, **options)

    monkeypatch.setattr(local_files, "opened", watched)
    monkeypatch.setattr(tally, "_KEPT_FROM_BYTES", 0)
    monkeypatch.setattr(stamps, "SETTLED_SECONDS", -1.0)
    yield found


def test_a_text_is_counted_once_until_it_changes(tmp_path: Path, readings: list[Path]) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\r\ntwo\r\n")
    first = load_file(file)
    for _ in range(3):
        again = load_file(file)
        assert (again.fingerprint, again.bytes, again.words, again.source) == (
            *(first.fingerprint, first.bytes, first.words),
            first.source,
        )
    assert len(readings) == 1 and list(again.documents) == ["one\r\n", "two\r\n"]
    # What is read otherwise is another text.
    readings.clear()
    other = load_file(file, reading=Reading(newlines="universal"))
    assert other.bytes == 8 and other.source["newlines"] == "universal" and len(readings) == 1
    assert load_file(file, reading=Reading(newlines="universal")).source["newlines"] == "universal"
    # The same size, and a time of change that was set back by hand.
    before = file.stat()
    file.write_text("one\r\nTWO\r\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_file(file).fingerprint != first.fingerprint
    # A file of the same content in its place is read again, and found to be the same text.
    readings.clear()
    (tmp_path / "new").write_text("one\r\ntwo\r\n")
    os.replace(tmp_path / "new", file)
    assert load_file(file).fingerprint == first.fingerprint and len(readings) == 1


def test_what_was_just_written_is_read_again(
    tmp_path: Path, readings: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamps, "SETTLED_SECONDS", 2.0)
    file = tmp_path / "a.txt"
    file.write_text("one\n")
    load_file(file)
    load_file(file)
    assert len(readings) == 2


@pytest.mark.parametrize("content", ["", "{", "null", '{"tally": 1}', '{"tally": {"bytes": 1}}'])
def test_a_damaged_tally_is_made_anew(content: str, tmp_path: Path, readings: list[Path]) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one\n")
    first = load_file(file)
    (kept,) = (files.home() / "corpora").glob("*.json")
    kept.write_text(content)
    assert load_file(file).fingerprint == first.fingerprint and len(readings) == 2


def test_a_directory_of_shards_is_one_split(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts" / "train"
    whole.mkdir()
    parts.mkdir(parents=True)
    (whole / "train.txt").write_text("a\nb\nc\nd\n")
    (parts / "2.txt").write_text("c\nd\n")
    (parts / "1.txt.gz").write_bytes(gzip.compress(b"a\nb\n"))
    (parts / ".hidden").write_text("x")
    one, other = (load(corpus, "train", data_dir=tmp_path) for corpus in ("whole", "parts"))
    assert one.documents == other.documents and one.fingerprint == other.fingerprint
    assert other.source == {"kind": "local", "file": "parts/train"}
    assert available(tmp_path)["parts"] == ["train"]
    (parts.parent / "train.txt").write_text("x\n")
    with pytest.raises(UserError, match=r"train and train\.txt; keep one"):
        load("parts", "train", data_dir=tmp_path)
    (parts.parent / "train.txt").unlink()
    (parts / "3.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"expected files of one kind \(.*\), found \.jsonl, \.txt"):
        local_files.read(parts, local_files.KnownCorpus())


def test_missing_shards_are_said(tmp_path: Path) -> None:
    (tmp_path / "birds" / "train").mkdir(parents=True)
    for number in (0, 2):
        (tmp_path / "birds" / "train" / f"train-0000{number}-of-00003.txt").write_text("x\n")
    with pytest.raises(UserError, match="expected 3 files, found 2"):
        load("birds", "train", data_dir=tmp_path)


class Hub:
    """A hub with one data set, which notes what it is asked for."""

    def __init__(self, rows: list[dict[str, Any]]):
        self.rows, self.asked = rows, list[dict[str, Any]]()

    def load_dataset(self, repository: str, config: str | None, **options: Any) -> Iterator[dict[str, Any]]:
        self.asked.append({"repository": repository, "config": config, **options})
        if options["split"] != "train":
            raise ValueError("unknown split")
        return iter(self.rows)


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub([{"text": text, "url": "x"} for text in TEXTS])
    monkeypatch.setattr("datasets.load_dataset", made.load_dataset)
    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *_, **__: type("Found", (), {"sha": "c" * 40}))
    return made


def test_a_data_set_of_the_hub_is_streamed(web: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load("hub:some/web:part", "train")
    assert list(found.documents) == TEXTS and found.unit == "document" and found.corpus == "some--web--part"
    assert all(asked == {**web.asked[0]} for asked in web.asked) and len(web.asked) == 2
    assert web.asked[0] == {
        **{"repository": "some/web", "config": "part", "split": "train", "streaming": True},
        "revision": "c" * 40,
    }
    # The text is that of a file with these rows, and is counted once for all later starts.
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in web.rows))
    assert load_file(tmp_path / "a.jsonl").fingerprint == found.fingerprint
    assert load("hub:some/web:part", "train").fingerprint == found.fingerprint and len(web.asked) == 2
    # Without the hub, by its commit.
    monkeypatch.setattr(hub, "reachable", lambda: False)
    assert load(f"hub:some/web:part@{'c' * 40}", "train").words == 3 and len(web.asked) == 2
    with pytest.raises(UserError, match=r"cannot be reached; what was read before is found .*@COMMIT"):
        load("hub:some/web:part", "train")


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("hub:web", "train", "expected hub:OWNER/NAME"),
        ("hub:some/web", "tset", "ValueError: unknown split"),
        ("hub:some/web", "../x", "and no path"),
    ],
)
def test_what_the_hub_does_not_have(name: str, split: str, message: str, web: Hub) -> None:
    with pytest.raises(UserError, match=message):
        load(name, split)
    with pytest.raises(UserError, match="expected the field 'body', found 'text', 'url'; to read another"):
        load("hub:some/web", "train", reading=Reading(text_column="body"))
