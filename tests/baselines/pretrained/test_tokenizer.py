"""Tokenizers of pretrained models: what they spell, runs of spaces, and long texts in pieces."""

from __future__ import annotations

import importlib.util
import json
import random
import subprocess
import sys
from typing import Any

import pytest

from baselines.pretrained.tokenizer import PretrainedTokenizer
from ltm import tokenizer
from ltm.errors import UserError
from ltm.text import cutting
from tests.support.miniature_runs import text

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the transformers package"
)

SPACES = ["a  b", "    indented\n        more  \n", " " * 40, "  ", "\t\t x", "a\n\n\nb", " ", "", "é  ü 🙂   x"]


def added(content: str, id: int, **changes: Any) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return {"id": id, "content": content, **plain, **changes}


def neox() -> str:
    """Byte-level BPE, with runs of spaces as added tokens, as GPT-NeoX and its successors have them."""
    data = json.loads(tokenizer.build("bpe-280", documents=text(400))._encoder.to_str())
    data["normalizer"] = {"type": "NFC"}
    size = 1 + max(data["model"]["vocab"].values())
    runs = [added(" " * n, size + 24 - n, normalized=True) for n in range(24, 1, -1)]
    data["added_tokens"] = [added("<|padding|>", size, special=True), *({**run, "id": run["id"] + 1} for run in runs)]
    return json.dumps(data)


def pieces(*, before: str | None = None, splits: bool = False) -> str:
    """Pieces with a sign for spaces and bytes to fall back to: Gemma's, or Llama's with a space before each text."""
    runs = ["▁" * n for n in range(2, 17)]
    words = [*"▁theofamodlsn", "▁t", "▁th", "▁the", "th", "the", "\n\n", "\t"]
    plain = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words, *runs]
    vocab = {piece: id for id, piece in enumerate(dict.fromkeys(plain))}
    merges = [["▁", "t"], ["▁t", "h"], ["▁th", "e"], ["t", "h"], ["th", "e"]]
    merges += [["▁" * (n // 2), "▁" * (n - n // 2)] for n in range(2, 17)]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    put = [{"type": "Prepend", "prepend": before}] if before else []
    split = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    special = [added(piece, vocab[piece], special=True) for piece in plain[:4]]
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [*special, *([] if before else (added(piece, vocab[piece]) for piece in ("\n\n", *runs)))],
            "normalizer": {"type": "Sequence", "normalizers": [*put, replace]},
            "pre_tokenizer": split if splits else None,
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                ],
            },
            "model": {
                "type": "BPE", "vocab": vocab, "merges": merges, "unk_token": "<unk>", "fuse_unk": True,
                "byte_fallback": True,
            },
        }
    )  # fmt: skip


def byte_level(**changes: Any) -> str:
    data = json.loads(tokenizer.build("bpe-280", documents=text(400))._encoder.to_str())
    data["pre_tokenizer"].update(changes)
    return json.dumps(data)


def llama_3() -> str:
    """Byte-level BPE behind the expression that Llama 3 splits text with."""
    data = json.loads(byte_level())
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    return json.dumps(data)


CONTENTS = {
    "neox": neox,
    "gemma": lambda: pieces(splits=True),
    "llama": lambda: pieces(before="▁"),
    "prefix space": lambda: byte_level(add_prefix_space=True),
    "llama 3": llama_3,
}


def opened(kind: str) -> PretrainedTokenizer:
    return PretrainedTokenizer(CONTENTS[kind](), name=kind, outputs=700, eos_id=1)


@pytest.mark.parametrize("kind", CONTENTS)
def test_runs_of_spaces_come_back(kind: str) -> None:
    found = opened(kind)
    for words, ids in zip(SPACES, found.encode_batch(SPACES), strict=True):
        assert found.decode(ids) in (words, f" {words}") and ids.dtype == "int32"
        assert (found.decode(ids) == words) or kind in ("llama", "prefix space")


def test_a_run_of_spaces_is_one_token() -> None:
    for kind in ("neox", "gemma"):
        assert len(opened(kind).encode(" " * 16)) == 1


def test_the_sign_of_a_space_is_no_space() -> None:
    with pytest.raises(UserError, match="comes back as"):
        opened("gemma").encode("a▁▁b")


@pytest.mark.parametrize("kind", CONTENTS)
def test_pieces_have_the_ids_of_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = random.Random(0)
    signs = [
        "the",
        "model",
        "of",
        "a1",
        " ",
        "  ",
        "\n",
        "!\n\n",
        "é",
        ".",
        "'s",
        "12",
        " \t",
        "the a",
        "🙂",
        "A",
        " the",
    ]
    texts = ["".join(chosen.choice(signs) for _ in range(chosen.randrange(200))) for _ in range(30)]
    texts += ["the model of a thought " * 20, *text(5)]
    whole = [ids.tolist() for ids in opened(kind).encode_batch(texts)]
    monkeypatch.setattr(cutting, "PIECE_CHARACTERS", 5)
    found = opened(kind)
    assert any(len(list(found.pieces([words]))) > 3 for words in texts)
    assert [ids.tolist() for ids in found.encode_batch(texts)] == whole


def test_no_cut_inside_a_token() -> None:
    """Some vocabularies have phrases: a cut may not part them."""
    data = json.loads(pieces())
    size = len(data["model"]["vocab"])
    data["model"]["vocab"]["e▁"] = size
    data["model"]["merges"].insert(0, ["e", "▁"])
    found = PretrainedTokenizer(json.dumps(data), name="phrases", outputs=700, eos_id=1)
    cut = [piece.text for piece in found.pieces(["the a " * 30_000])]
    assert len(cut) > 1 and not any(piece.endswith("e") for piece in cut)
    assert found.decode(found.encode("the a " * 30_000)) == "the a " * 30_000


MEASURE = """
import resource, sys
from tests.baselines.pretrained.test_tokenizer import opened
found, megabytes = opened(sys.argv[1]), int(sys.argv[2])
words = "the model of a thought is 12 latent, as the models of  thoughts are.\\n" * (megabytes * 1_000_000 // 70)
found.encode(words[:1_000_000])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ids = found.encode(words)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / len(words), len(ids) / len(words))
"""


@pytest.mark.parametrize("kind", ["neox", "gemma"])
def test_memory_is_that_of_the_ids(kind: str) -> None:
    """At most its ids twice over, as parts and joined, and a batch: encodings would be hundreds of bytes for each."""
    found = subprocess.run([sys.executable, "-c", MEASURE, kind, "20"], capture_output=True, text=True, check=True)
    per_character, tokens = map(float, found.stdout.split())
    assert per_character < 2 * 4 * tokens + 12
