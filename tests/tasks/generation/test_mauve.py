"""MAUVE: what is asked of texts and featurisers, and, where mauve-text is installed, that it orders what it must."""

from __future__ import annotations

import json
import lzma
import os
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from ltm import registry
from ltm.errors import UserError
from ltm.harness import HarnessModel
from ltm.testing.miniatures import trained
from tasks.generation import mauve
from tests.support.harness_models import Bigram, BigramConfig, loaded, save_small

installed = pytest.mark.skipif(find_spec("mauve") is None, reason="mauve-text, an optional extra, is not installed")


def test_shuffling_keeps_words_and_the_white_space_between_them():
    text = "  one two\n\nthree  four five\tsix "
    mixed = mauve.shuffled_words(text, 3)
    assert Counter(mixed.split()) == Counter(text.split()) and mixed != text
    assert [c for c in mixed if c.isspace()] == [c for c in text if c.isspace()]
    assert mixed == mauve.shuffled_words(text, 3) != mauve.shuffled_words(text, 4)
    assert mauve.shuffled_words("", 0) == "" and mauve.shuffled_words("one", 0) == "one"


def test_too_few_texts_and_a_missing_package_are_said(monkeypatch):
    with pytest.raises(UserError, match="at least 500 texts on each side, found 64: --samples 500"):
        mauve.check_size(64)
    mauve.check_size(500)
    monkeypatch.setattr(mauve, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"latent-thought-bench\[mauve\]"):
        mauve.check_available()


def test_the_features_of_an_ar_are_its_tokens_logits_by_dimensions():
    model, tokens = trained(registry.model_family("ar")), torch.tensor([[0, 1, 2, 1]])
    features = model.features(tokens, torch.tensor([4]))
    logits_LV = model.decoder(model.decoder.with_bos(tokens))[0] @ model.decoder.head().T
    assert float(features.sum()) == pytest.approx(float(logits_LV.gather(1, tokens.T).mean()), rel=1e-9)


@pytest.mark.parametrize("family", sorted(set(registry.names(registry.MODELS)) - {"ar", "pretrained"}))
def test_other_families_say_that_they_have_none(family):
    cls = registry.model_family(family)
    with pytest.raises(UserError, match=f"the family {family} has no features"):
        cls(cls.miniature(4, 4)).features(torch.tensor([[0]]), torch.tensor([1]))


class Counting(Bigram):
    """Its features are how long a text is, and its first byte."""

    def features(self, tokens_BL, lengths):
        """(B, 2)."""
        return torch.stack([lengths, tokens_BL[:, 0]], 1)


def test_texts_keep_their_order_empty_ones_are_dropped_and_long_ones_cut():
    featuriser = HarnessModel(pretrained=loaded(Counting(BigramConfig(block=16))), batch_size=2)
    found = mauve.features(featuriser, ["abc", "", "z" * 40, "b", "cd"])
    assert found.tolist() == [[3, 97], [16, 122], [1, 98], [2, 99]] and found.dtype == np.float32


@installed
def test_equal_sets_are_near_one_shifted_ones_near_zero_and_the_same_each_time(capfd):
    rng = np.random.default_rng(0)
    p, q = (rng.standard_normal((500, 16)).astype(np.float32) for _ in range(2))
    alike, apart = mauve.mauve(p, q), mauve.mauve(p, q + 6)
    assert alike.mean > 0.9 > 0.1 > apart.mean and 0 < alike.sd < 0.1
    assert mauve.mauve(p, q) == alike and 0 < alike.star <= 1
    assert capfd.readouterr().err == ""


@installed
@pytest.mark.slow
@pytest.mark.skipif("LTM_DATA_DIR" not in os.environ, reason="LTM_DATA_DIR, with human_vs_gpt2xl, is not set")
def test_people_resemble_people_more_than_gpt2_xl_does_and_shuffled_words_least(tmp_path):
    """The texts differ in white space by their making, not their writing, so it is made alike."""
    from ltm.training.run import train_preset

    files = sorted(Path(os.environ["LTM_DATA_DIR"]).glob("human_vs_gpt2xl/*.jsonl.xz"))
    if not files:
        pytest.skip("no human_vs_gpt2xl in LTM_DATA_DIR")
    rows = [json.loads(line) for file in files for line in lzma.decompress(file.read_bytes()).splitlines()]
    place = train_preset("ar-tiny", corpus="openwebtext", budget="tokens=400k", output=tmp_path / "ar")
    featuriser = HarnessModel(pretrained=str(place))
    order = np.random.default_rng(0).permutation(len(rows)).tolist()
    first, second = order[: len(rows) // 2], order[len(rows) // 2 :]

    def texts(who: str, numbers: list[int]) -> list[str]:
        return [" ".join(rows[n][who].split()) for n in numbers]

    people = mauve.features(featuriser, texts("human", first))
    sets = {"human": texts("human", second), "gpt2_xl": texts("gpt2_xl", second)}
    sets["shuffled"] = [mauve.shuffled_words(text, n) for n, text in enumerate(sets["human"])]
    found = {who: mauve.mauve(people, mauve.features(featuriser, own)) for who, own in sets.items()}
    print(found)
    assert found["human"].mean > found["gpt2_xl"].mean + 3 * found["gpt2_xl"].sd
    assert found["gpt2_xl"].mean > found["shuffled"].mean + 3 * found["shuffled"].sd


def test_a_family_without_features_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    from tasks import cli, models

    save_small(tmp_path / "home", "ltm-tiny")
    monkeypatch.setenv("LTM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(mauve, "check_available", lambda: None)
    monkeypatch.setattr(models, "open_model", lambda *a: pytest.fail("a model was opened"))
    arguments = ["--model", "ltm-tiny", "--tasks", "generation", "--samples", "500", "--mauve", "ltm-tiny"]
    assert cli.main([*arguments, "--output", str(tmp_path / "results")]) == 2
    assert "the family ltm has no features of texts" in capsys.readouterr().err
