"""Text as people bring it: marks, line ends, packings, names, tables, pipes; right text, or an error that says why."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltm.data.corpora import load, load_file
from ltm.data.corpus_table import KNOWN
from ltm.data.detokenize import DETOKENIZERS
from ltm.data.local_files import label
from ltm.data.reading import Reading
from ltm.data.rows import Columns, of_json_lines
from ltm.errors import UserError

TEXT = "The heron waits.\n\nNo fish today, é.\nlast line"
MARK = b"\xef\xbb\xbf"
UNIVERSAL = Reading(newlines="universal")


def put(directory: Path, name: str, content: bytes | str) -> Path:
    file = directory / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def zstd(data: bytes) -> bytes:
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


def parquet(**columns: Sequence[object]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


PACK: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress, ".zst": zstd}


@pytest.mark.parametrize("suffix", PACK)
def test_a_byte_order_mark_is_no_text_and_said_once(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = load_file(put(tmp_path, "plain.txt", TEXT))
    marked = load_file(put(tmp_path, f"marked.txt{suffix}", PACK[suffix](MARK + TEXT.encode())))
    assert marked.documents == plain.documents
    assert (marked.fingerprint, marked.bytes) == (plain.fingerprint, plain.bytes)
    rows = "".join(json.dumps({"text": line}) + "\n" for line in plain.documents)
    found = load_file(put(tmp_path, f"rows.jsonl{suffix}", PACK[suffix](MARK + rows.encode())))
    assert found.fingerprint == plain.fingerprint
    load_file(tmp_path / f"rows.jsonl{suffix}")
    assert capsys.readouterr().err.count(f"rows.jsonl{suffix}: its byte order mark is no text") == 1
    # Anywhere else it is a character like others.
    assert load_file(put(tmp_path, "inside.txt", "a\ufeffb")).documents == ["a\ufeffb"]


@pytest.mark.parametrize(
    ("coding", "named"),
    [("utf-16", "UTF-16"), ("utf-16-le", "UTF-16LE"), ("utf-16-be", "UTF-16BE"), ("utf-32", "UTF-32")],
)
def test_wide_encodings_are_refused_with_the_remedy(coding: str, named: str, tmp_path: Path) -> None:
    for name in ("wide.txt", "wide.jsonl", "wide.csv"):
        with pytest.raises(UserError, match=f"expected UTF-8, found .*iconv -f {named} -t UTF-8"):
            load_file(put(tmp_path, name, "The heron waits.".encode(coding)))


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_carriage_returns_are_kept_with_a_warning_or_read_as_line_feeds(
    end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = load_file(put(tmp_path, "plain.txt", TEXT))
    file = put(tmp_path, "other.txt", TEXT.replace("\n", end))
    kept = load_file(file)
    assert "".join(kept.documents) == TEXT.replace("\n", end) and kept.fingerprint != plain.fingerprint
    assert "--newlines universal reads them as line feeds" in capsys.readouterr().err
    found = load_file(file, reading=UNIVERSAL)
    assert found.documents == plain.documents and found.fingerprint == plain.fingerprint
    assert (found.bytes, found.words) == (plain.bytes, plain.words)
    assert found.source["newlines"] == "universal" and "newlines" not in kept.source
    # Line ends between rows are no text; those within are.
    rows = end.join(json.dumps({"text": f"a{end}b{n}"}) for n in range(2))
    assert load_file(put(tmp_path, "r.jsonl", rows)).documents == [f"a{end}b0", f"a{end}b1"]
    assert load_file(tmp_path / "r.jsonl", reading=UNIVERSAL).documents == ["a\nb0", "a\nb1"]
    table = f'id,text{end}1,"a{end}b"{end}2,c{end}'
    assert load_file(put(tmp_path, "t.csv", table)).documents == [f"a{end}b", "c"]


@pytest.mark.parametrize("corpus", [name for name, known in KNOWN.items() if known.detokenizer in DETOKENIZERS])
@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_word_split_corpora_are_the_same_under_all_line_ends(
    corpus: str, end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " a baker 's <unk> , \n about N loaves @-@ \n"
    put(tmp_path, f"one/{corpus}/validation.txt", text)
    put(tmp_path, f"two/{corpus}/validation.txt", text.replace("\n", end))
    one, two = (load(corpus, "validation", data_dir=tmp_path / name) for name in ("one", "two"))
    assert one.texts() == two.texts() and (one.fingerprint, one.bytes) == (two.fingerprint, two.bytes)
    assert "newlines" not in one.source and two.source["newlines"] == "universal"
    assert "warning" not in capsys.readouterr().err


def test_files_of_rows_give_one_text(tmp_path: Path) -> None:
    texts = ["The heron waits.", 'no "fish",\ntoday', "naïve 😀"]
    lines = "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts))
    table, tabs = (
        f"id{mark}text\n" + "".join('{}{}"{}"\n'.format(n, mark, t.replace('"', '""')) for n, t in enumerate(texts))
        for mark in ",\t"
    )
    files: dict[str, bytes | str] = {
        "a.jsonl": lines,
        "a.ndjson": lines,
        "a.JSON": lines,
        "c4.json.gz": gzip.compress(lines.encode()),
        "a.csv": table,
        "b.csv": MARK + table.encode(),
        "a.tsv": tabs,
        "a.parquet": parquet(id=[0, 1, 2], text=texts),
    }
    found = {name: load_file(put(tmp_path, name, content)) for name, content in files.items()}
    assert {name: split.documents for name, split in found.items()} == dict.fromkeys(files, texts)
    assert len({split.fingerprint for split in found.values()}) == 1
    for name, content in files.items():
        put(tmp_path, f"birds-{name.lower().replace('.', '-')}/train{name[name.index('.') :]}", content)
        split = load(f"birds-{name.lower().replace('.', '-')}", "train", data_dir=tmp_path)
        assert split.fingerprint == found["a.jsonl"].fingerprint and split.unit == "document"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", "id,body\n1,a b\n"),
        ("t.tsv", "id\tbody\n1\ta b\n"),
        ("t.jsonl", '{"body": "a b", "text": 7}\n'),
        ("t.parquet", parquet(body=["a b"], id=[1])),
    ],
)
def test_another_column_is_named(name: str, content: bytes | str, tmp_path: Path) -> None:
    file = put(tmp_path, f"birds/{name}", content)
    with pytest.raises(UserError, match=r"field 'text' must be text|found .*'body'.*--text-column NAME"):
        load_file(file)
    body = Reading(text_column="body")
    found = load_file(file, reading=body)
    assert found.documents == ["a b"] and found.source["text_column"] == "body"
    assert load("birds", "t", data_dir=tmp_path, reading=body).documents == ["a b"]
    with pytest.raises(UserError, match=r"expected the field 'bdy', found .*'body'"):
        load_file(file, reading=Reading(text_column="bdy"))
    # The table of corpora says where the text of a known one is.
    put(tmp_path, "gsm8k/train.jsonl", '{"question": "How many?", "answer": "#### 2"}')
    assert load("gsm8k", "train", data_dir=tmp_path, reading=body).documents == ["How many?\n#### 2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'text\n"never closed\n', r"line \d: unexpected end of data"),
        ("a.csv", "id,text\n1\n", "line 2: expected 2 fields, as in the header, found 1"),
        ("a.csv", "text,text\na,b\n", "each column once"),
        ("a.csv", "", "expected the field 'text', found none"),
        ("a.csv", "text\n", "no text in 0 documents"),
        ("a.json", '[{"text": "a"}]', r"line 1: expected an object, found a list of 1; .*jq -c '\.\[\]'"),
        ("a.json", '{\n"text": "a"}', r"line 1: expected JSON, .*jq -c"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": ' + "[" * 100_000 + "]" * 100_000 + "}",
            "line 2: expected at most 32 lev",
        ),
        ("a.jsonl", '{"text": "a", "n": ' + "9" * 50_000 + "}", "line 1: expected integers of at most 20 digits"),
        ("a.jsonl", '{"text": null}', "line 1: field 'text' must be text, found NoneType"),
        ("a.parquet", parquet(text=["a", None]), "row 2: field 'text' must be text"),
        ("a.parquet", parquet(text=[1]), "row 1: field 'text' must be text, found int"),
        ("a.parquet", parquet(text=["a"])[:-9], "is it damaged"),
        ("a.parquet", b"", "is it damaged"),
        ("a.parquet.xz", b"", "parquet is packed inside"),
        ("a.txt", b"\0" * 3000, "expected UTF-8, found zeros"),
    ],
)
def test_damaged_rows(name: str, content: bytes | str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_file(put(tmp_path, name, content))
    assert name in str(caught.value) or "text_a" in str(caught.value)
    assert len(str(caught.value)) < 600 + len(str(tmp_path))


ROWS = st.one_of(
    st.binary(max_size=50),
    st.text('[]{}",:0123456789eE+-.\\undftrlsaINix ', max_size=50).map(str.encode),
    st.builds(
        lambda value, at, byte: (lambda row: row[: at % len(row)] + byte + row[at % len(row) + 1 :])(
            json.dumps({"text": value}).encode()
        ),
        st.text(max_size=9) | st.none() | st.floats() | st.lists(st.text(max_size=3), max_size=3),
        st.integers(0, 99),
        st.binary(max_size=2),
    ),
)


@settings(max_examples=500)
@given(ROWS)
def test_any_line_is_a_document_or_an_error_that_names_it(line: bytes) -> None:
    try:
        documents = list(of_json_lines([(7, line.decode(errors="replace"))], Columns(choices=[("text",)]), "here"))
    except UserError as error:
        assert str(error).startswith("here, line 7") and str(error).isprintable()
    else:
        text = line.decode(errors="replace").lstrip("\ufeff")
        assert documents == ([json.loads(text)["text"]] if text.strip() else [])


def bomb(packing: str, piece: bytes) -> bytes:
    """80 MiB of repeated bytes, in at most some hundred kilobytes."""
    if packing == ".xz":
        packer = lzma.LZMACompressor(preset=0)
        return b"".join(packer.compress(piece) for _ in range(80)) + packer.flush()
    if packing == ".gz":
        return gzip.compress(piece, 1) * 80
    return zstd(piece) * 80


@pytest.mark.parametrize(("name", "packing"), [("a.txt", ".xz"), ("a.jsonl", ".gz"), ("a.csv", ".zst")])
def test_what_expands_without_end_is_refused_before_anything_is_made_of_it(
    name: str, packing: str, tmp_path: Path
) -> None:
    file = put(tmp_path, name + packing, bomb(packing, b"\n" * (1 << 20)))
    assert file.stat().st_size < 1 << 20
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(UserError, match=r"expected at most [\d,]+ bytes of text, found more; .*--max-bytes 8G"):
        load_file(file)
    assert time.process_time() - started < 2
    assert tracemalloc.get_traced_memory()[1] < 256 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("suffix", PACK)
def test_the_limit_counts_unpacked_bytes(suffix: str, tmp_path: Path) -> None:
    file = put(tmp_path, f"a.txt{suffix}", PACK[suffix](TEXT.encode()))
    size = len(TEXT.encode())
    assert "".join(load_file(file, reading=Reading(max_bytes=max(size, file.stat().st_size))).documents) == TEXT
    with pytest.raises(UserError, match=rf"at most {size - 1} bytes of text, found more.*--max-bytes"):
        load_file(file, reading=Reading(max_bytes=size - 1))


def test_what_the_user_asks_for_is_read_however_much_it_expands(tmp_path: Path) -> None:
    file = put(tmp_path, "a.txt.zst", zstd((b"a" * (1 << 20) + b"\n") * 70))
    with pytest.raises(UserError, match="at most 67,108,864 bytes"):
        load_file(file)
    assert load_file(file, reading=Reading(max_bytes="80M")).bytes == 70 * ((1 << 20) + 1)


def test_unpacking_does_not_take_the_memory_that_a_file_asks_for(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    file = put(tmp_path, "a.txt.xz", lzma.compress(TEXT.encode(), filters=filters))
    with pytest.raises(UserError, match="more than 256 MiB of memory; pack it again, with xz -9"):
        load_file(file)
    # What `xz -9` writes is fine, also in several streams with padding.
    largest = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 64 << 20}]
    put(tmp_path, "a.txt.xz", lzma.compress(TEXT.encode(), filters=largest) * 2 + bytes(4))
    assert "".join(load_file(file).documents) == TEXT * 2


def test_a_parquet_file_of_equal_values_is_refused(tmp_path: Path) -> None:
    file = put(tmp_path, "a.parquet", parquet(text=["a" * (1 << 20)] * 80))
    assert file.stat().st_size < 1 << 20
    with pytest.raises(UserError, match=r"at most 67,108,864 bytes of text.*--max-bytes"):
        load_file(file)
    assert load_file(file, reading=Reading(max_bytes="100M")).bytes == 80 << 20


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("notes.txt", "notes"),
        ("NOTES.TXT", "NOTES"),
        ("notes.txt.GZ", "notes"),
        ("notes.md", "notes.md"),
        ("README", "README"),
        ("my notes, 2.txt", "my-notes-2"),
        ("a,b.txt", "a-b"),
        ("日本.txt", "日本"),
        ("हिन्दी.txt", "हिन्दी"),
        ("cafe\u0301.txt", "café"),
    ],
)
def test_labels(name: str, expected: str, tmp_path: Path) -> None:
    assert label(put(tmp_path, name, "x")) == expected


def test_different_names_have_different_labels(tmp_path: Path) -> None:
    names = ["日本.txt", "中国.txt", "😀.txt", "😁.txt", "a😀.txt", f"{'é' * 70}1.txt", f"{'é' * 70}2.txt"]
    if sys.platform == "linux":
        names += ["\udce9.txt", "\udcea.txt"]
    labels = [label(put(tmp_path, name, "x")) for name in names]
    assert len(set(labels)) == len(names)
    assert all(text.isprintable() and " " not in text and len(text.encode()) <= 110 for text in labels)


needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")


@needs_pipes
@pytest.mark.parametrize("name", ["validation.txt", "validation.jsonl", "validation.txt.gz", "validation.parquet"])
def test_what_is_no_file_in_a_directory_of_corpora_is_refused_at_once(name: str, tmp_path: Path) -> None:
    for corpus in ("pipe", "device", "folder", "gone"):
        (tmp_path / corpus).mkdir()
    os.mkfifo(tmp_path / "pipe" / name)
    (tmp_path / "device" / name).symlink_to("/dev/zero")
    (tmp_path / "folder" / name).mkdir()
    (tmp_path / "gone" / name).symlink_to(tmp_path / "nothing")
    for corpus, found in (
        ("pipe", "found a pipe"),
        ("device", "found a device"),
        ("folder", "found a directory"),
        ("gone", "there is no file"),
    ):
        with pytest.raises(UserError, match=found):
            load(corpus, "validation", data_dir=tmp_path)


@needs_pipes
def test_a_pipe_that_the_user_names_is_read_to_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="no text in 0 documents"):
        load_file(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(TEXT * 10_000))
    writer.start()
    time.sleep(0.1)  # the writer waits for a reader
    found = load_file(pipe)
    writer.join()
    assert "".join(found.documents) == TEXT * 10_000 and found.corpus == "text_pipe"


@needs_pipes
def test_standard_input_and_open_files_are_read_with_the_limit() -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom ltm.data.corpora import load_file\n"
        "from ltm.data.reading import Reading\nfrom ltm.errors import UserError\n"
        "try:\n    split = load_file(Path(sys.argv[1]), reading=Reading(max_bytes=100))\n"
        "    print(split.corpus, split.bytes)\n"
        "except UserError as error:\n    print(error)"
    )

    def printed(path: str, given: bytes) -> str:
        done = subprocess.run([sys.executable, "-c", code, path], input=given, capture_output=True, check=True)
        return done.stdout.decode()

    assert printed("/dev/stdin", TEXT.encode()) == f"text_stdin {len(TEXT.encode())}\n"
    assert printed("/dev/fd/0", TEXT.encode()) == f"text_fd-0 {len(TEXT.encode())}\n"
    assert "/dev/stdin: expected at most 100 bytes" in printed("/dev/stdin", b"y\n" * 100_000)


@pytest.mark.parametrize("value", ["", "-1", "0", "many", "1e3", "5X", "9" * 30, 1.5])
def test_limits_that_are_none(value: object) -> None:
    with pytest.raises(UserError, match="--max-bytes: expected"):
        Reading(max_bytes=value)  # type: ignore[arg-type]


def test_limits() -> None:
    values = [Reading(max_bytes=value).limit for value in (7, "7", "2k", "3M", "4G", "1T", None)]
    assert values == [7, 7, 2_000, 3_000_000, 4 * 10**9, 10**12, 1 << 40]
