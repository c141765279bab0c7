"""Texts that know their documents: what they are to others, and every token of theirs scored exactly once."""

from __future__ import annotations

import copy
import math
import pickle
import random
import re

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from ltm import tokenizer
from ltm.data.separated_text import SeparatedText, check_round_trip, streams
from ltm.errors import UserError
from ltm.harness import HarnessModel
from tests.support.harness_models import Bigram, BigramConfig, NoisyBigram, loaded

BYTES = tokenizer.build("bytes")


def test_a_string_to_whoever_does_not_look_further():
    text = SeparatedText(["one ", "", "two"])
    assert text == "one two" and isinstance(text, str) and text.documents == ("one ", "", "two")
    for twin in (pickle.loads(pickle.dumps(text)), copy.deepcopy(text)):
        assert twin == text and twin.documents == text.documents


def test_eos_stands_between_any_two_documents_and_nowhere_else():
    eos = BYTES.eos_id
    texts = [SeparatedText(["ab", "", "c"]), "abc", SeparatedText(["ab"]), SeparatedText([]), SeparatedText([""])]
    found = [ids.tolist() for ids in streams(texts, BYTES)]
    assert found == [[97, 98, eos, eos, 99], [97, 98, 99], [97, 98], [], []]
    assert {ids.dtype for ids in streams(texts, BYTES)} == {np.dtype(np.int32)}


class Witness(Bigram):
    """Writes down the tokens of every block that it is given."""

    def log_likelihoods(self, tokens_BL, *, context=0, lengths=None, draws=None, rng, only=None):
        """As the bigram's."""
        lengths_B = [tokens_BL.shape[1]] * len(tokens_BL) if lengths is None else lengths.tolist()
        for index, tokens_L, length in zip(rng.indices, tokens_BL, lengths_B, strict=True):
            self.seen.append((index, tokens_L[:length].tolist()))
        return super().log_likelihoods(tokens_BL, context=context, lengths=lengths, draws=draws, rng=rng, only=only)


@pytest.mark.parametrize("trial", range(24))
def test_every_token_is_scored_once(trial, tmp_path, monkeypatch):
    monkeypatch.setenv("LTM_HOME", str(tmp_path))
    drawn = random.Random(trial)
    alphabet = "ab \n\té😀<|endoftext|>"
    documents = ["".join(drawn.choices(alphabet, k=drawn.choice([0, 0, 1, 7, 40]))) for _ in range(drawn.randint(1, 9))]
    documents.append("z" * drawn.randint(1, 20))
    block, batch, separated = drawn.randint(1, 40), drawn.randint(1, 9), trial % 2 == 1
    model = Witness(BigramConfig(block=block))
    model.seen = []
    harness = HarnessModel(pretrained=loaded(model), dtype="float64", batch_size=batch)
    text = SeparatedText(documents) if separated else "".join(documents)
    model.seen.clear()
    (value,) = harness.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])

    size = len("".join(documents).encode()) + (len(documents) - 1 if separated else 0)
    assert value.tokens == value.stream_tokens == size and value.complete
    assert value.blocks.tokens_N.tolist() == [block] * (size // block) + [size % block] * (size % block > 0)
    # One block an index, in order of the text, none twice; together they are the stream.
    indices, blocks = zip(*sorted(model.seen), strict=True)
    assert list(indices) == list(range(math.ceil(size / block)))
    stream = [token for tokens in blocks for token in tokens]
    (expected,) = streams([text], BYTES)
    assert stream == expected.tolist() and stream.count(BYTES.eos_id) == (len(documents) - 1) * separated
    assert BYTES.decode_bytes(stream) == "".join(documents).encode()
    nats = sum(float(model.nats_BL(torch.tensor([tokens])).sum().detach()) for tokens in blocks)
    assert value == pytest.approx(nats, rel=1e-12)


def test_the_two_protocols_have_their_own_answers_and_the_same_noise():
    harness = HarnessModel(pretrained=loaded(NoisyBigram(BigramConfig())), dtype="float64")
    requests = [
        Instance("loglikelihood_rolling", {}, (text,), 0, metadata=("t", 0, 1))
        for text in ("abcd", SeparatedText(["ab", "cd"]), SeparatedText(["abcd"]), "abcd")
    ]
    plain, separated, single, again = harness.loglikelihood_rolling(requests)
    assert (plain.tokens, separated.tokens) == (4, 5) and plain != separated
    assert plain == single == again


class Lossy:
    """A tokenizer of characters that shortens runs of spaces, or puts one before a text."""

    name, eos_id = "lossy", 0

    def __init__(self, before: str = "", shorten: bool = False):
        self.before, self.shorten = before, shorten

    def decode(self, ids):
        """The text that is left."""
        text = self.before + "".join(map(chr, ids))
        return re.sub(" +", " ", text) if self.shorten else text


def test_texts_that_their_tokens_do_not_give_back_are_refused():
    ids = np.array([ord(c) for c in "a  b"], np.int32)
    check_round_trip(Lossy(), "a  b", ids)
    check_round_trip(Lossy(before=" "), "a  b", ids)
    with pytest.raises(UserError, match="lossy does not give the text back: at character 2 expected ' b', found 'b'"):
        check_round_trip(Lossy(shorten=True), "a  b", ids)
    separated = SeparatedText(["a ", " b"])
    check_round_trip(Lossy(), separated, np.array([97, 32, 0, 32, 98], np.int32))
    with pytest.raises(UserError, match="does not give the text back"):
        check_round_trip(Lossy(shorten=True), separated, np.array([97, 32, 0, 32, 98], np.int32))
