"""Corpora: exact text and counts, one fingerprint whatever the packing or source, errors that say what to do."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from ltm import hub
from ltm.data import local_files
from ltm.data.corpora import available, load, load_file
from ltm.data.corpus_table import KNOWN
from ltm.data.detokenize import DETOKENIZERS
from ltm.data.split import Split
from ltm.errors import UserError

LINES = " the heron waits \n\n no fish é today \r\nlast line \x0c with a form feed\u2028and more"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "data"
    directory.mkdir()
    monkeypatch.setenv("LTM_DATA_DIR", str(directory))
    return directory


def put(directory: Path, name: str, content: str | bytes) -> Path:
    file = directory / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_lines_of_a_text_file_are_exactly_the_file(data: Path) -> None:
    put(data, "birds/validation.txt", LINES)
    split = load("birds", "validation")
    assert split.unit == "line" and split.detokenizer is None
    assert "".join(split.documents) == LINES
    assert len(split.documents) == 4 and all(line.endswith("\n") for line in split.documents[:-1])
    assert split.bytes == len(LINES.encode())
    assert split.words == len(LINES.split())
    assert split.texts() == list(split.documents)
    assert split.source == {"kind": "local", "file": "birds/validation.txt"}


def zstd(content: bytes) -> bytes:
    half = len(content) // 2
    return b"".join(pyarrow.compress(part, codec="zstd", asbytes=True) for part in (content[:half], content[half:]))


@pytest.mark.parametrize(("suffix", "pack"), [(".xz", lzma.compress), (".gz", gzip.compress), (".zst", zstd)])
def test_packing_changes_nothing_but_the_name(data: Path, suffix: str, pack: Callable[[bytes], bytes]) -> None:
    put(data, "plain/train.txt", LINES)
    packed = put(data, f"packed/train.txt{suffix}", pack(LINES.encode()))
    plain, unpacked = load("plain", "train"), load("packed", "train")
    assert plain.documents == unpacked.documents
    assert plain.fingerprint == unpacked.fingerprint
    packed.write_bytes(packed.read_bytes()[:-9])
    with pytest.raises(UserError, match="damaged or cut short"):
        load("packed", "train")
    packed.write_bytes(b"not packed at all")
    with pytest.raises(UserError, match="damaged or cut short"):
        load("packed", "train")


def test_rows_of_a_jsonl_file_are_documents(data: Path) -> None:
    texts = ["one\ndocument\r\n", "", "naïve 😀"]
    put(data, "birds/train.jsonl", jsonl(*({"text": text, "title": "x"} for text in texts)) + "\n")
    split = load("birds", "train")
    assert split.unit == "document"
    assert list(split.documents) == texts
    assert split.bytes == sum(len(text.encode()) for text in texts)
    assert split.words == 4


def test_known_corpora_may_have_other_fields(data: Path) -> None:
    put(data, "gsm8k/train.jsonl", jsonl({"question": "How many?", "answer": "#### 2"}))
    assert list(load("gsm8k", "train").documents) == ["How many?\n#### 2"]
    put(data, "arxiv/train.jsonl", jsonl({"article": "We prove it."}))
    assert list(load("arxiv", "train").documents) == ["We prove it."]


def test_the_fingerprint_is_of_text_and_boundaries(data: Path) -> None:
    def fingerprint(*documents: str, detokenizer: str | None = None, edition: str = "") -> str:
        return Split.of(
            "any", "train", documents, unit="line", source={}, detokenizer=detokenizer, edition=edition
        ).fingerprint

    assert fingerprint("ab", "c") == fingerprint("ab", "c")
    others = {
        fingerprint("ab", "c"),
        fingerprint("a", "bc"),
        fingerprint("abc"),
        fingerprint("ab", "c", ""),
        fingerprint("ab", "c", detokenizer="ptb"),
        fingerprint("ab", "c", detokenizer="wikitext"),
        fingerprint("ab", "c", edition="2"),
    }
    assert len(others) == 7
    put(data, "one/train.txt", "a\nb\n")
    put(data, "two/validation.jsonl", jsonl({"text": "a\n"}, {"text": "b\n"}))
    assert load("one", "train").fingerprint == load("two", "validation").fingerprint


def test_known_corpora_are_detokenised_and_counted_raw(data: Path) -> None:
    put(data, "ptb/validation.txt", " a baker 's <unk> \n about N loaves \n")
    split = load("ptb", "validation")
    assert split.detokenizer == "ptb"
    assert split.texts() == ["a baker's ?\n", "about 1 loaves\n"]
    assert (split.bytes, split.words) == (36, 7)


def write_parquet(file: Path, **columns: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    file.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), file)


def test_the_hub_cache_gives_what_the_file_gives(data: Path, tmp_path: Path) -> None:
    rows = {"ptb": ["a baker 's <unk>", "N loaves"], "wikitext": ["", " = Bread = \n", "", " Rye , mostly . \n"]}
    files = {"ptb": " a baker 's <unk> \n N loaves \n", "wikitext": " \n = Bread = \n \n Rye , mostly . \n"}
    places = {"ptb": "penn_treebank/validation/0000", "wikitext": "wikitext-2-raw-v1/validation-00000-of-00001"}
    for name, place in places.items():
        source = KNOWN[name].hub
        assert source
        directory = tmp_path / "cache" / "hub" / f"datasets--{source.repository.replace('/', '--')}"
        write_parquet(directory / "snapshots" / ("d" * 40) / f"{place}.parquet", **{KNOWN[name].fields[0]: rows[name]})
        from_hub = load(name, "validation")
        assert from_hub.source["commit"] == "d" * 40 and from_hub.source["repository"] == source.repository
        put(data, f"{name}/validation.txt", files[name])
        from_file = load(name, "validation")
        assert from_file.source["kind"] == "local"
        assert from_hub.documents == from_file.documents
        assert from_hub.unit == from_file.unit == "line"
        assert from_hub.fingerprint == from_file.fingerprint
    assert load("wikitext", "validation").texts() == ["", " = Bread =\n", "", " Rye, mostly.\n"]


def in_cache(tmp_path: Path, repository: str) -> Path:
    return tmp_path / "cache" / "hub" / f"datasets--{repository.replace('/', '--')}" / "snapshots" / ("d" * 40)


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.hub])
def test_every_hub_corpus_loads_from_files_of_the_pattern(name: str, data: Path, tmp_path: Path) -> None:
    known = KNOWN[name]
    assert known.hub
    for split, pattern in known.hub.files.items():
        place = pattern.replace("-*", "-00000-of-00001").replace("*", "0000")
        rows = {field: [f"the {field} of {place}", "one more"] for field in known.fields}
        write_parquet(in_cache(tmp_path, known.hub.repository) / place, **rows, other=["x", "y"])
        part = known.hub.rows.get(split)
        if part and part[1] is not None:
            # All rows but more than there are.
            with pytest.raises(UserError, match="no text in 0 documents"):
                load(name, split)
            continue
        found = load(name, split)
        assert len(found.documents) == 2 and place in found.documents[0]
        assert found.source["files"] == pattern and found.source["commit"] == "d" * 40
        assert found.source["revision"] == known.hub.revision


def test_a_published_test_split_stands_for_a_validation_split_and_the_source_says_so(
    data: Path, tmp_path: Path
) -> None:
    assert KNOWN["lm1b"].hub
    file = in_cache(tmp_path, KNOWN["lm1b"].hub.repository) / "plain_text/test/0000.parquet"
    write_parquet(file, text=["It rose ."])
    found = load("lm1b", "validation")
    assert found.source["files"] == "plain_text/test/*.parquet" and found.documents == ["It rose .\n"]
    assert found.fingerprint == load("lm1b", "test").fingerprint
    put(data, "lm1b/validation.txt", "It rose .\n")
    assert load("lm1b", "validation").fingerprint == found.fingerprint


def test_openwebtext_is_split_at_its_last_hundred_thousand_documents(data: Path, tmp_path: Path) -> None:
    assert KNOWN["openwebtext"].hub
    folder = in_cache(tmp_path, KNOWN["openwebtext"].hub.repository) / "plain_text"
    write_parquet(folder / "train-00079-of-00080.parquet", text=[f"page {n}" for n in range(100_003)])
    found = load("openwebtext", "validation")
    assert len(found.documents) == 100_000 and found.documents[0] == "page 3"
    assert found.source["rows"] == [-100_000, None]
    # One file of eighty is a part of the held-out documents, but never all of train.
    with pytest.raises(UserError, match=r"openwebtext/train is not here"):
        load("openwebtext", "train")


def test_another_local_split_is_named_and_never_taken(data: Path) -> None:
    put(data, "lm1b/test.txt", "It rose .\n")
    with pytest.raises(UserError, match=r"lm1b, which has test \(another split is never used instead"):
        load("lm1b", "validation")


def test_a_file_is_a_text_by_itself(data: Path, tmp_path: Path) -> None:
    put(tmp_path, "my notes, 2.txt", LINES)
    found = load_file(tmp_path / "my notes, 2.txt")
    assert (found.corpus, found.split) == ("text_my-notes-2", "all")
    assert "".join(found.documents) == LINES and found.bytes == len(LINES.encode())
    assert found.source == {"kind": "file", "file": "my notes, 2.txt"}
    packed = put(tmp_path, "other.txt.xz", lzma.compress(LINES.encode()))
    assert load_file(packed).fingerprint == found.fingerprint
    put(data, "birds/train.txt", LINES)
    assert load("birds", "train").fingerprint == found.fingerprint
    rows = put(tmp_path, "rows.jsonl", jsonl({"text": "a"}, {"text": "b"}))
    assert list(load_file(rows).documents) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.txt", None, "gone.txt: no such file"),
        ("folder.txt", ..., "folder.txt: a directory, not a file"),
        ("empty.txt", b"", "text_empty/all: no text in 0 documents"),
        ("latin.txt", b"caf\xe9", r"latin.txt: byte 3 \(0xe9\) is not UTF-8"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is ...:
        (tmp_path / name).mkdir()
    elif content is not None:
        put(tmp_path, name, content)
    with pytest.raises(UserError, match=message):
        load_file(tmp_path / name)


def test_a_hub_file_without_the_field(data: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "cache/hub/datasets--Salesforce--wikitext/snapshots" / ("d" * 40)
    write_parquet(snapshot / "wikitext-2-raw-v1/train-00000-of-00001.parquet", page=["x"])
    with pytest.raises(UserError, match="expected the field 'text', found 'page'"):
        load("wikitext", "train")


def test_the_cache_answers_with_whole_sets_of_files_of_the_named_commit(tmp_path: Path) -> None:
    repository = tmp_path / "cache/hub/datasets--some--thing"
    for commit, names in {
        "a" * 40: ["x-00000-of-00002.p", "x-00001-of-00002.p"],
        "b" * 40: ["x-00000-of-00002.p"],
    }.items():
        for name in names:
            put(repository / "snapshots" / commit, name, "x")
    found = hub.cached("some/thing", "dataset", ("x-*.p",))
    assert found and found.commit == "a" * 40 and len(found.files) == 2
    put(repository / "snapshots" / ("b" * 40), "x-00001-of-00002.p", "x")
    put(repository / "refs", "main", "b" * 40)
    found = hub.cached("some/thing", "dataset", ("x-*.p",))
    assert found and found.commit == "b" * 40
    assert hub.cached("some/thing", "dataset", ("y-*.p",)) is None
    assert hub.cached("some/thing", "model", ("x-*.p",)) is None


def test_files_of_the_hub_come_with_the_commit_that_they_belong_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repository: str, **options: Any) -> str:
        if repository == "no/body":
            raise OSError("no such repository")
        assert options["revision"] == "main" and options["allow_patterns"] == ["x-*.p"]
        put(tmp_path / ("c" * 40), "x-00000-of-00001.p" if repository == "some/thing" else "y.p", "x")
        return str(tmp_path / ("c" * 40))

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(hub.HubError, match=r"other/thing at commit c{40} has no files like x-\*\.p"):
        hub.fetch("other/thing", "dataset", ("x-*.p",))
    with pytest.raises(hub.HubError, match=r"no/body at .*: OSError: no such repository \(HF_HUB_OFFLINE=1"):
        hub.fetch("no/body", "dataset", ("x-*.p",))
    found = hub.fetch("some/thing", "dataset", ("x-*.p",))
    assert found.commit == "c" * 40 and [file.name for file in found.files] == ["x-00000-of-00001.p"]


def test_missing_splits_say_what_was_looked_for_and_where(data: Path, tmp_path: Path) -> None:
    put(data, "wikitext/validation.txt", "x\n")
    with pytest.raises(UserError) as caught:
        load("wikitext", "train")
    for part in (
        "train.txt",
        "train.jsonl",
        "packed",
        str(data / "wikitext"),
        "Salesforce/wikitext",
        "cannot be reached",
    ):
        assert part in str(caught.value)


def test_without_a_directory_the_remedy_names_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LTM_DATA_DIR", raising=False)
    for corpus in ("wikitext", "my-birds"):
        with pytest.raises(UserError, match=rf"train.txt or .* in DIR/{corpus}/ and set LTM_DATA_DIR=DIR"):
            load(corpus, "train")


@pytest.mark.parametrize(
    ("corpus", "split", "message"),
    [
        ("brids", "train", "unknown corpus 'brids'; did you mean birds"),
        ("wikitxt", "train", "did you mean wikitext"),
        ("pydoc", "train", "did you mean pydocs"),
        ("birds", "validate", "unknown split of birds 'validate'; did you mean validation"),
        ("ptb", "tset", "did you mean test"),
        ("pydocs", "valid", "did you mean validation"),
        ("../data/birds", "train", "and no path"),
        ("birds", "../birds/train", "and no path"),
        ("..", "train", "and no path"),
        ("", "train", "and no path"),
        ("/etc", "passwd", "and no path"),
    ],
)
def test_wrong_names(data: Path, corpus: str, split: str, message: str) -> None:
    put(data, "birds/train.txt", "x\n")
    put(data, "birds/validation.txt.xz", lzma.compress(b"x\n"))
    with pytest.raises(UserError, match=message):
        load(corpus, split)


def test_two_files_for_one_split(data: Path) -> None:
    put(data, "birds/train.txt", "x\n")
    put(data, "birds/train.jsonl.xz", lzma.compress(b"x\n"))
    with pytest.raises(UserError, match=r"train.jsonl.xz and train.txt; keep one"):
        load("birds", "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.txt", b"good\nba\xffd\n", r"train.txt: byte 7 \(0xff\) is not UTF-8"),
        ("train.txt", b"good\n\xc3", r"byte 5 \(0xc3\)"),
        ("train.jsonl", b'{"text": "a"}\n{"text": "\xe9"}', r"byte 24 \(0xe9\)"),
        ("train.txt", b"", "no text in 0 documents"),
        ("train.txt", b" \n\n", "no text in 2 documents"),
        ("train.jsonl", b"\n", "no text in 0 documents"),
        ("train.jsonl", b'{"text": "a"}\n\n{"text"', "line 3: expected JSON"),
        (
            "train.jsonl",
            b'{"txt": "a", "id": "b"}',
            "line 1: expected the field 'text', found 'txt', 'id'; to read another: --text-column NAME",
        ),
        ("train.jsonl", b"{}", "expected the field 'text', found none"),
        ("train.jsonl", b'["a"]', "expected an object, found a list of 1"),
        ("train.jsonl", b'{"text": 7}', "field 'text' must be text, found int"),
        ("train.jsonl", b'{"text": "ab\\ud800"}', "half a surrogate pair at character 2"),
    ],
)
def test_bad_content(data: Path, name: str, content: bytes, message: str) -> None:
    put(data, f"birds/{name}", content)
    with pytest.raises(UserError, match=message):
        load("birds", "train")


def test_a_data_directory_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--data-dir is .*nowhere, which is not a directory"):
        load("birds", "train", data_dir=tmp_path / "nowhere")
    monkeypatch.setenv("LTM_DATA_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"LTM_DATA_DIR is .*nowhere"):
        load("birds", "train")


def test_a_given_directory_goes_before_the_environment(data: Path, tmp_path: Path) -> None:
    put(data, "birds/train.txt", "from the environment")
    put(tmp_path / "given", "birds/train.txt", "given")
    assert list(load("birds", "train", data_dir=tmp_path / "given").documents) == ["given"]


def test_what_is_available(data: Path) -> None:
    put(data, "birds/train.txt", "x\n")
    put(data, "birds/notes.md", "x\n")
    put(data, "tokenizers/gpt2/merges.txt", "x\n")
    found = available()
    assert found["birds"] == ["train"]
    assert "pydocs" in found and "tokenizers" not in found
    assert found["ptb"] == ["test", "train", "validation"]


def paragraphs(split: Split) -> set[str]:
    lines = "\n".join(line.rstrip() for document in split.documents for line in (*document.split("\n"), ""))
    return {" ".join(paragraph.split()) for paragraph in lines.split("\n\n")} - {""}


def test_pydocs_is_english_with_nothing_of_validation_in_train() -> None:
    train, validation = load("pydocs", "train"), load("pydocs", "validation")
    assert train.bytes > 300_000 and 0.05 < validation.bytes / train.bytes < 0.25
    assert not paragraphs(train) & paragraphs(validation)
    assert train.source["package"] == "pydoc_data.topics" and train.source["python"]
    assert train.fingerprint != validation.fingerprint
    assert train.unit == "document" and train.fingerprint == load("pydocs", "train").fingerprint
    text = " ".join(train.documents)
    assert all(f" {word} " in text for word in ("the", "of", "is", "which"))


def test_embedded_corpora_need_no_directory_and_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "fetch", lambda *_: pytest.fail("asked the hub"))
    monkeypatch.setattr(local_files, "find", lambda *_: pytest.fail("asked the directory"))
    assert load("pydocs", "validation").words > 1000


def test_the_hub_is_probed_in_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(hub.urllib.request, "getproxies", dict)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub.reachable()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert not hub.reachable()
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.2)

    def stall(*_: object) -> None:
        # A name server that does not answer: the socket's own timeout does not cover it.
        time.sleep(1.0)
        raise TimeoutError

    monkeypatch.setattr(hub.socket, "create_connection", stall)
    monkeypatch.setenv("HF_ENDPOINT", "http://stalled.invalid")
    start = time.monotonic()
    assert not hub.reachable()
    assert time.monotonic() - start < 0.9


@pytest.mark.skipif(not os.environ.get("LTM_DATA_DIR"), reason="LTM_DATA_DIR, a directory of real corpora, is not set")
def test_real_corpora_are_whole() -> None:
    for corpus, lines, size in (("ptb", 3370, 399_782), ("wikitext", 3760, 1_146_846), ("lm1b", 12216, 1_673_607)):
        split = load(corpus, "validation")
        assert (len(split.documents), split.bytes) == (lines, size)
        text = "".join(split.texts())
        assert "<unk>" not in text or corpus == "wikitext"
        assert corpus == "lm1b" or not any(f" {mark} " in text for mark in ("@-@", "@,@", "@.@", "N"))
    assert "".join(load("lambada", "validation").texts()).count("\n") == 4869
    for corpus in ("ag_news", "pubmed", "arxiv", "openwebtext"):
        assert load(corpus, "validation").words > 30_000


def test_detokenisers_of_the_table_exist() -> None:
    assert {known.detokenizer for known in KNOWN.values()} - {None} <= DETOKENIZERS.keys()


def test_the_fingerprint_of_plain_text_is_pinned() -> None:
    # Results name their data by it: a change of the recipe would orphan all of them.
    split = Split.of("any", "train", ["one\n", "two"], unit="line", source={})
    recipe = hashlib.sha256(b"('split 1', '', '')")
    for document in (b"one\n", b"two"):
        recipe.update(len(document).to_bytes(8, "little") + document)
    assert split.fingerprint == recipe.hexdigest()
