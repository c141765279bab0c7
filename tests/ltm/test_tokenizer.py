"""Any text goes to ids and back to its exact bytes, under all three tokenizers."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ltm import tokenizer
from ltm.data.corpora import load
from ltm.errors import UserError
from ltm.text import cutting
from ltm.tokenizer import Tokenizer, build

TEXT = list(load("pydocs", "validation").documents)[:4]
AWKWARD = [
    "",
    " ",
    "   ",
    "\n",
    " \n \n\n  ",
    " leading and trailing  ",
    "a  b   c    d",
    "tab\tand\r\nCRLF\x0bform\x0cfeed",
    "<|endoftext|> is text, and so is <|beginoftext|><|endoftext|>",
    "naïve café — “quotes” ’s ‘t",
    "emoji 😀👩‍👩‍👧‍👦🇨🇭 and combining e\u0301",
    "中文没有空格，日本語も。",
    "\x00\x01\x1c\x1f\x7f\x85\u200b\u2028\u2029\ufeff\ufffd",
    "Ġ Ċ Ā ÿ ×",
    "I'll we've they'd 's't're",
    "\U0010ffff\ud7ff\ue000",
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-cache"))


@pytest.fixture(scope="module", params=["bytes", "bpe-400", "gpt2"])
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "gpt2" and not os.environ.get("LTM_DATA_DIR"):
        pytest.skip("LTM_DATA_DIR, where tokenizers/gpt2 is, is not set")
    return build(request.param, documents=TEXT)


def random_texts(count: int) -> list[str]:
    chance = random.Random(7)
    alphabet = "aeSt'’n 0 \n\n\t\r\x1c\x85\u2003é中😀.,!\x00"
    return ["".join(chance.choices(alphabet, k=chance.randrange(1, 60))) for _ in range(count)]


def test_round_trip_is_exact(any_tokenizer: Tokenizer) -> None:
    for text in AWKWARD + TEXT + random_texts(300):
        ids = any_tokenizer.encode(text)
        assert ids.dtype == np.int32 and ids.ndim == 1
        assert any_tokenizer.decode_bytes(ids) == text.encode()
        assert any_tokenizer.decode(ids) == text
        assert not ids.size or 0 <= ids.min() <= ids.max() < any_tokenizer.eos_id < any_tokenizer.bos_id


def test_every_byte_string_of_ids_decodes(any_tokenizer: Tokenizer) -> None:
    single = {any_tokenizer.decode_bytes([i]): i for i in range(any_tokenizer.eos_id)}
    assert {bytes([b]) for b in range(256)} <= single.keys()
    broken = [single[b"\xe4"], single[b"a"]]
    assert any_tokenizer.decode_bytes(broken) == b"\xe4a"
    assert any_tokenizer.decode(broken) == "\ufffda"


def test_eos_and_bos_decode_to_nothing(any_tokenizer: Tokenizer) -> None:
    ids = [any_tokenizer.bos_id, *any_tokenizer.encode("fish"), any_tokenizer.eos_id]
    assert any_tokenizer.decode(ids) == "fish"
    assert any_tokenizer.bos_id == any_tokenizer.vocab_size - 1


def test_ids_outside_the_vocabulary(any_tokenizer: Tokenizer) -> None:
    for wrong in (-1, any_tokenizer.vocab_size):
        with pytest.raises(UserError, match=f"token id {wrong} is outside"):
            any_tokenizer.decode_bytes([0, wrong])


def test_half_a_surrogate_pair_is_refused(any_tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="surrogate pair at character 2"):
        any_tokenizer.encode("ab\ud800")


def test_batches_equal_single_texts(any_tokenizer: Tokenizer) -> None:
    texts = AWKWARD + random_texts(50)
    for one, of_batch in zip(map(any_tokenizer.encode, texts), any_tokenizer.encode_batch(texts), strict=True):
        assert np.array_equal(one, of_batch)


FEW_SPACES = [
    "".join(
        random.Random(n).choices(["word", "12", "'", "s", "'ll", "。", "熊", "!", "/", "é", "₂", "\u00a0", "ˈ"], k=99)
    )
    for n in range(40)
]


def test_pieces_have_the_ids_of_the_whole(any_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*random_texts(300), "".join(random_texts(200)), "".join(AWKWARD), TEXT[0], *FEW_SPACES]
    whole = [any_tokenizer.encode(text) for text in texts]
    for size in (1, 3, 17):
        monkeypatch.setattr(cutting, "PIECE_CHARACTERS", size)
        monkeypatch.setattr(cutting, "BATCH_CHARACTERS", 5 * size)
        for text, ids in zip(texts, whole, strict=True):
            assert np.array_equal(any_tokenizer.encode(text), ids)
            # As a whole and in parts, whatever the parts.
            for parts in ([text], list(text), [text[:7], "", text[7:]]):
                pieces = list(any_tokenizer.pieces(parts))
                assert "".join(piece.text for piece in pieces) == text
                assert [piece.first for piece in pieces] == [True] + [False] * (len(pieces) - 1)
                assert np.array_equal(np.concatenate(any_tokenizer.encode_pieces(pieces)), ids)


@pytest.mark.parametrize("joint", ["熊。", "word/", "a1", "1a", "!a", "x'"])
def test_texts_without_spaces_are_cut_too(joint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "PIECE_CHARACTERS", 10)
    text = joint * 1000
    pieces = list(build("bpe-300", documents=TEXT).pieces([text]))
    assert "".join(piece.text for piece in pieces) == text and max(len(piece.text) for piece in pieces) < 20


@pytest.mark.parametrize("text", ["a" * 100, "熊" * 100, "!" * 100, "'s" * 50, "\u00a0" * 100, " " * 100])
def test_what_may_be_one_match_is_not_cut(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting, "PIECE_CHARACTERS", 10)
    tokenizer = build("bpe-300", documents=TEXT)
    assert np.array_equal(
        np.concatenate(tokenizer.encode_pieces(list(tokenizer.pieces(text)))),
        tokenizer.encode_pieces([cutting.Piece(text, True)])[0],
    )


def test_saved_and_loaded(any_tokenizer: Tokenizer, tmp_path: Path) -> None:
    any_tokenizer.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.name, loaded.vocab_size, loaded.fingerprint) == (
        any_tokenizer.name,
        any_tokenizer.vocab_size,
        any_tokenizer.fingerprint,
    )
    for text in AWKWARD:
        assert np.array_equal(loaded.encode(text), any_tokenizer.encode(text))


def test_the_saved_file_is_one_that_the_tokenizers_package_reads(any_tokenizer: Tokenizer, tmp_path: Path) -> None:
    import tokenizers

    theirs = tokenizers.Tokenizer.from_file(str(any_tokenizer.save(tmp_path)))
    for text in AWKWARD + TEXT:
        assert theirs.encode(text).ids == any_tokenizer.encode(text).tolist()


def test_bytes_are_bytes() -> None:
    bytewise = build("bytes")
    assert bytewise.encode("hé").tolist() == list("hé".encode())
    assert (bytewise.name, bytewise.eos_id, bytewise.bos_id, bytewise.vocab_size) == ("bytes", 256, 257, 258)


def test_trained_sizes() -> None:
    trained = build("bpe-300", documents=TEXT)
    assert (trained.name, trained.eos_id, trained.bos_id, trained.vocab_size) == ("bpe-300", 299, 300, 301)
    assert len(trained.encode(TEXT[0])) < len(TEXT[0].encode())


def test_training_repeats_in_another_process() -> None:
    program = (
        "import sys, json; from ltm.tokenizer import build; "
        "print(build('bpe-400', documents=json.load(sys.stdin)).fingerprint)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(TEXT),
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
        ).stdout.strip()
        for seed, threads in (("1", "1"), ("2", "2"))
    }
    assert found == {build("bpe-400", documents=iter(TEXT)).fingerprint}


def test_fingerprints_tell_tokenizers_apart() -> None:
    names = ("bytes", "bpe-300", "bpe-301")
    assert len({build(name, documents=TEXT).fingerprint for name in names}) == 3
    assert build("bpe-300", documents=TEXT[:1]).fingerprint != build("bpe-300", documents=TEXT[1:]).fingerprint


def test_training_takes_an_evenly_spread_part_of_much_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_TRAINING_CHARACTERS", 1000)
    monkeypatch.setattr(tokenizer, "_SAMPLED_CHARACTERS", 10)
    documents = [f"{letter * 9} " * 99 + letter for letter in "abcdefgh"]
    taken = list(tokenizer._sample(documents))
    assert 900 <= sum(map(len, taken)) <= 1100
    assert {piece.strip()[0] for piece in taken} == set("abcdefgh")
    assert taken == list(tokenizer._sample(documents))


@pytest.mark.parametrize(
    ("name", "documents", "message"),
    [
        ("gtp2", None, "did you mean gpt2"),
        ("bpe-", None, "unknown tokenizer"),
        ("bpe-400", None, "trained on the text of a corpus"),
        ("bpe-257", TEXT, "from 258"),
        ("bpe-9999999", TEXT, "to 1000000"),
        ("bpe-4096", ["too little text"], "at most bpe-2"),
    ],
)
def test_bad_names(name: str, documents: list[str] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(name, documents=documents)


def test_the_largest_size_that_an_error_names_works() -> None:
    with pytest.raises(UserError, match=r"at most bpe-\d+") as caught:
        build("bpe-60000", documents=TEXT)
    assert build(str(caught.value).rpartition(" ")[2], documents=TEXT).vocab_size > 258


def test_missing_gpt2_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        build("gpt2", data_dir=tmp_path)
    for part in (str(tmp_path / "tokenizers" / "gpt2"), "no-cache", "openai-community/gpt2", "LTM_DATA_DIR", "bytes"):
        assert part in str(caught.value)


def test_other_files_are_not_taken_for_gpt2(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(UserError, match=r"vocab.json is not GPT-2's: expected sha256 1961.*found"):
        build("gpt2", data_dir=tmp_path)
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(UserError, match=r"there is no file .*vocab.json; the gpt2 tokenizer needs it"):
        build("gpt2", data_dir=tmp_path)


@pytest.mark.skipif(not os.environ.get("LTM_DATA_DIR"), reason="LTM_DATA_DIR, where tokenizers/gpt2 is, is not set")
def test_gpt2_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpt2 = build("gpt2")
    assert (gpt2.name, gpt2.eos_id, gpt2.bos_id, gpt2.vocab_size) == ("gpt2", 50256, 50257, 50258)
    assert gpt2.encode("Hello world").tolist() == [15496, 995]
    assert 50256 not in gpt2.encode("<|endoftext|>")
    # The same files from a hub cache give the same tokenizer.
    given = Path(os.environ["LTM_DATA_DIR"]) / "tokenizers" / "gpt2"
    cached = tmp_path / "no-cache" / "hub" / "models--gpt2" / "snapshots" / ("c" * 40)
    cached.mkdir(parents=True)
    for name in ("vocab.json", "merges.txt"):
        (cached / name).symlink_to(given / name)
    monkeypatch.delenv("LTM_DATA_DIR")
    assert build("gpt2").fingerprint == gpt2.fingerprint


def test_damaged_saved_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        Tokenizer.load(tmp_path)
    file = build("bytes").save(tmp_path)
    whole = file.read_text()
    for damaged in (
        whole[:100],
        "[]",
        "{}",
        whole.replace("<|endoftext|>", "<|end|>"),
        whole.replace('"a": 97', '"a": 98'),
    ):
        file.write_text(damaged)
        with pytest.raises(UserError, match="not a tokenizer of ours"):
            Tokenizer.load(tmp_path)
