"""Texts read without our BOS: the numbers of lm-eval's own `hf` backend, and what they are labelled and kept under."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path

import pytest
import torch
from lm_eval.api.instance import Instance

from ltm.data.separated_text import SeparatedText
from ltm.errors import UserError
from ltm.evaluation.cache import cache_path
from ltm.harness import HarnessModel
from tests.support.harness_models import Bigram, BigramConfig, loaded
from tests.support.small_published import POSITIONS, hf_backend, save_published

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the transformers package"
)

LONG = "the thought of a model is latent and so on, and on, and the thought goes on. " * 3
PAIRS = [
    ("the thought", " of a model"),
    ("the thought of ", "a"),
    ("", "the model"),
    ("th", "e"),  # one token spans both
    ("naïve 🙂", "\n\n"),
    (LONG, " goes on and"),
    ("<s>a model", " is"),
]
TEXTS = [LONG, "short", "the thought of a model is late", ""]


def requests(kind: str, arguments: list[tuple[str, ...]]) -> list[Instance]:
    return [Instance(kind, {}, each, 0, metadata=("t", n, 1)) for n, each in enumerate(arguments)]


@pytest.fixture(scope="module", params=["gpt2", "gpt2+bos", "gpt_neox", "gpt_neox+bos", "llama", "llama+bos"])
def published(request, tmp_path_factory) -> Path:
    architecture, _, bos = request.param.partition("+")
    return save_published(tmp_path_factory.mktemp(request.param), architecture, bos=bool(bos))


def test_every_number_is_that_of_the_hf_backend(published, caplog):
    theirs = hf_backend(published)
    # As lm-eval's command line reads prefix=none.
    ours = HarnessModel.create_from_arg_obj({"pretrained": f"pretrained:{published}", "prefix": None})
    pairs = requests("loglikelihood", PAIRS)
    expected = theirs.loglikelihood(pairs, disable_tqdm=True)
    with caplog.at_level(logging.WARNING):
        found = ours.loglikelihood(pairs)
    assert [float(nats) for nats, _ in found] == pytest.approx([nats for nats, _ in expected], abs=1e-4)
    assert [same for _, same in found] == [same for _, same in expected]
    assert f"1 context shortened to fit blocks of {POSITIONS - 1} tokens" in caplog.text
    texts = requests("loglikelihood_rolling", [(text,) for text in TEXTS])
    whole = ours.loglikelihood_rolling(texts)
    assert [float(nats) for nats in whole] == pytest.approx(
        theirs.loglikelihood_rolling(texts, disable_tqdm=True), abs=1e-4
    )
    assert [nats.tokens for nats in whole] == [len(theirs.tok_encode(text)) for text in TEXTS]
    assert len(whole[0].blocks.nats_N) == -(-whole[0].tokens // POSITIONS) > 2
    options = {"until": ["\n"], "max_gen_toks": 8}
    prompts = requests("generate_until", [("the thought", options), ("a model is", options)])
    assert ours.generate_until(prompts) == theirs.generate_until(prompts, disable_tqdm=True)
    assert ours.offered == {"exact": ("exact", 0)} and ours.like().loglikelihood(pairs) == found


def test_a_greedy_continuation_is_called_greedy_as_there(published):
    ours = HarnessModel(pretrained=f"pretrained:{published}", prefix="none")
    theirs = hf_backend(published)
    greedy = []
    for context in ("the thought", "a", "model", "of", "is", "o", "t", "latent", "d", *"efghijklmn"):
        with torch.no_grad():
            best = int(theirs.model(torch.tensor([ours._encode_prompt(context)])).logits[0, -1].argmax())
        # The best id may have no text, which that backend cannot score.
        texts = [text for text in (theirs.tokenizer.decode([best]), " of a model") if text]
        pairs = requests("loglikelihood", [(context, text) for text in texts])
        found, expected = ours.loglikelihood(pairs), theirs.loglikelihood(pairs, disable_tqdm=True)
        assert [same for _, same in found] == [same for _, same in expected]
        greedy += [same for _, same in found]
    assert any(greedy) and not all(greedy)


def test_the_prefix_is_part_of_labels_and_keys_and_bos_is_what_it_was(tmp_path):
    directory = save_published(tmp_path / "net", "gpt2", bos=False)
    plain, bos, none = (
        HarnessModel(pretrained=f"pretrained:{directory}", **options)
        for options in ({}, {"prefix": "bos"}, {"prefix": "none"})
    )
    keys = [cache_path(tmp_path, model.runner.circumstances("t")) for model in (plain, bos, none)]
    assert keys[0] == keys[1] != keys[2]
    assert "prefix" not in plain.get_model_info() and none.get_model_info()["prefix"] == "none"
    assert none.get_model_info()["model_name"] == "pretrained:net prefix=none"
    pairs = requests("loglikelihood", PAIRS[:1])
    (with_bos, _), (without, _) = plain.loglikelihood(pairs)[0], none.loglikelihood(pairs)[0]
    assert abs(with_bos - without) > 0.01
    # A first token has nothing but the prefix before it, whichever way it is read.
    texts = requests("loglikelihood_rolling", [("the model",)])
    assert none.loglikelihood_rolling(texts)[0] == pytest.approx(plain.loglikelihood_rolling(texts)[0], abs=1e-5)


def test_what_cannot_be_read_so_is_refused(tmp_path):
    with pytest.raises(
        UserError, match="prefix=none is for models made elsewhere, such as pretrained:gpt2; the family"
    ):
        HarnessModel(pretrained=loaded(Bigram(BigramConfig())), prefix="none")
    with pytest.raises(UserError, match="unknown prefix 'eos'; did you mean bos"):
        HarnessModel(pretrained=loaded(Bigram(BigramConfig())), prefix="eos")
    directory = save_published(tmp_path / "net", "gpt2", bos=False)
    model = HarnessModel(pretrained=f"pretrained:{directory}", prefix="none")
    with pytest.raises(UserError, match="leave eos_between_documents out"):
        model.loglikelihood_rolling(requests("loglikelihood_rolling", [(SeparatedText(["a", "b"]),)]))
