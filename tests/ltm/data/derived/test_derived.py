"""Mixtures and held-out documents: the text is that of the parts, counted as often as it occurs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ltm.data import corpora
from ltm.data.derived import held_out, mixture
from ltm.errors import UserError
from ltm.training.run import train_preset


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for corpus, count in (("birds", 3), ("ships", 2)):
        folder = tmp_path / "data" / corpus
        folder.mkdir(parents=True)
        rows = [json.dumps({"text": f"{corpus} {i} naïve.\n"}) for i in range(count)]
        (folder / "train.jsonl").write_text("\n".join(rows))
    (tmp_path / "data" / "ptb").mkdir()
    (tmp_path / "data" / "ptb" / "train.txt").write_text(" a line \n")
    monkeypatch.setenv("LTM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("LTM_HOME", str(tmp_path / "home"))
    return tmp_path / "data"


def test_a_mixture_is_its_parts_in_order_as_often_as_it_says(data: Path) -> None:
    whole = corpora.load("birds+3*ships", "train")
    birds, ships = (corpora.load(name, "train") for name in ("birds", "ships"))
    assert [*whole.texts()] == [*birds.texts(), *(3 * [*ships.texts()])]
    assert len(whole.documents) == 9
    assert whole.bytes == sum(len(text.encode()) for text in whole.texts()) == birds.bytes + 3 * ships.bytes
    assert whole.words == birds.words + 3 * ships.words
    assert whole.corpus == "birds+3*ships" and whole.unit == "document"
    assert [part["fingerprint"] for part in whole.source["parts"]] == [birds.fingerprint, ships.fingerprint]
    assert [part["times"] for part in whole.source["parts"]] == [1, 3]
    assert corpora.at_hand("birds+3*ships", "train") and not corpora.at_hand("birds+stones", "train")


def test_another_mixture_has_another_fingerprint(data: Path) -> None:
    names = ("birds+ships", "ships+birds", "birds+2*ships", "2*birds+ships", "birds+ships+ships", "2*birds", "birds")
    assert len({corpora.load(name, "train").fingerprint for name in names}) == len(names)


def test_parts_in_memory_and_with_a_split_of_their_own(data: Path) -> None:
    whole = corpora.load("birds+arithmetic/validation", "train")
    assert [*whole.texts()] == [
        *corpora.load("birds", "train").texts(),
        *corpora.load("arithmetic", "validation").texts(),
    ]
    assert len(whole.documents) == 503
    in_memory = corpora.load("2*arithmetic/validation", "train")
    assert [*in_memory.texts()] == 2 * [*corpora.load("arithmetic", "validation").texts()]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("birds+", "expected corpora with . between them"),
        ("0*birds+ships", "expected corpora with . between them"),
        ("birds*2", "expected corpora with . between them"),
        ("birds+ptb", "ptb consists of lines; expected documents"),
        ("birds+topics", "topics consists of sequences; expected documents"),
        ("birds+shisp", "shisp"),
        ("birds+ships/tset", "tset"),
    ],
)
def test_what_is_no_mixture_is_refused(data: Path, name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        corpora.load(name, "train")


def test_the_last_documents_are_held_out_and_the_others_are_the_rest(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="which has 3; expected at least 2000"):
        corpora.load("birds", held_out.REST)
    monkeypatch.setattr(held_out, "DOCUMENTS", 1)
    train, rest, held = (corpora.load("birds", split) for split in ("train", held_out.REST, held_out.HOLDOUT))
    assert [*rest.documents, *held.documents] == [*train.documents]
    assert len(held.documents) == 1 and held.split == "train_holdout"
    assert len({train.fingerprint, rest.fingerprint, held.fingerprint}) == 3
    assert corpora.at_hand("birds", held_out.HOLDOUT) and not corpora.at_hand("stones", held_out.REST)
    mixed = corpora.load("ships+birds/train_rest", "train")
    assert [*mixed.texts()] == [*corpora.load("ships", "train").texts(), *rest.texts()]


def test_parts_are_parsed() -> None:
    assert mixture.parse("novels+4*gsm8k/train_rest") == [
        mixture.Part(corpus="novels", split=None, times=1),
        mixture.Part(corpus="gsm8k", split="train_rest", times=4),
    ]
    assert mixture.is_mixture("2*novels") and not mixture.is_mixture("hub:openai/gsm8k")


def test_a_model_is_trained_on_a_mixture_and_says_so(data: Path, tmp_path: Path) -> None:
    output = train_preset(
        "ngram-tiny",
        corpus="birds+3*ships",
        tokenizer_name="bytes",
        budget="tokens=200",
        output=tmp_path / "model",
        settings=["max_length=16"],
    )
    training = json.loads((output / "model.json").read_text())["training"]
    assert training["corpus"] == "birds+3*ships"
    whole = corpora.load("birds+3*ships", "train")
    assert training["data_fingerprint"] == whole.fingerprint
