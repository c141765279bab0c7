"""Any model behind lm-eval: what is scored, with which noise, and that nothing cosmetic shows in a number."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import pickle

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from ltm.errors import UserError
from ltm.evaluation.cache import cache_path
from ltm.harness import HarnessModel
from ltm.rng import SequenceRng, seed_of
from tests.support.harness_models import Bigram, BigramConfig, NoisyBigram, loaded, save_small

TEXT = "Naïve café: the quick brown fox jumps over the lazy dog, twice.\n\n  Indented, then done."


def harness(model=None, **options) -> HarnessModel:
    return HarnessModel(pretrained=loaded(model or NoisyBigram(BigramConfig())), **{"dtype": "float64", **options})


def rolling(text: str, task: str = "t", doc: int = 0) -> Instance:
    return Instance("loglikelihood_rolling", {}, (text,), 0, metadata=(task, doc, 1))


def pair(context: str, continuation: str, doc: int = 0, idx: int = 0) -> Instance:
    return Instance("loglikelihood", {}, (context, continuation), idx, metadata=("t", doc, 1))


def prompt(text: str, doc: int = 0, **options) -> Instance:
    return Instance("generate_until", {}, (text, options), 0, metadata=("t", doc, 1))


@pytest.mark.parametrize("make", [Bigram, NoisyBigram])
def test_a_whole_text_is_the_sum_over_its_blocks(make):
    model = make(BigramConfig())
    (value,) = harness(model).loglikelihood_rolling([rolling(TEXT, "task")])
    data = torch.tensor(list(TEXT.encode()))
    expected = 0.0
    for i, block in enumerate(data.split(16)):
        rng = SequenceRng(seed_of(0, "task"), [i])
        estimate = model.log_likelihood(block[None], rng=rng)
        expected += float(estimate.nats_B)
        assert value.blocks.nats_N[i] == pytest.approx(float(estimate.nats_B), rel=1e-12)
    assert value == pytest.approx(expected, rel=1e-12)
    assert value.tokens == value.stream_tokens == len(data) and value.complete
    assert value.blocks.tokens_N.tolist() == [16] * (len(data) // 16) + [len(data) % 16]


def test_exact_nats_by_hand():
    model = Bigram(BigramConfig(block=3))
    (value,) = harness(model).loglikelihood_rolling([rolling("abcd")])
    table = model.logits.detach().log_softmax(1).numpy()
    bos, (a, b, c, d) = 257, b"abcd"
    assert value == pytest.approx(table[bos, a] + table[a, b] + table[b, c] + table[bos, d], rel=1e-13)
    assert (value.kind, value.draws, value.mc_variance, value.terms) == ("exact", 0, None, {})


def test_a_bound_keeps_kind_draws_variance_parts_and_companions():
    (value,) = harness(draws=6).loglikelihood_rolling([rolling(TEXT)])
    assert (value.headline, value.kind, value.draws) == ("elbo", "lower_bound", 6)
    assert list(value.likelihoods) == ["elbo", "importance_bound", "reused_noise_estimate"]
    assert sum(value.terms.values()) == pytest.approx(value, rel=1e-12)
    assert value.terms["-kl"] == pytest.approx(-NoisyBigram.kl * value.tokens)
    assert 0 < value.mc_variance < 10 * len(value.blocks.nats_N) * NoisyBigram.spread**2
    assert value.likelihoods["reused_noise_estimate"].kind == "estimate"
    assert {name for name, blocks in value.likelihoods.items() if blocks.averaged} == {"elbo"}
    assert harness(draws=6).loglikelihood_rolling([rolling(TEXT)])[0].blocks.averaged  # from the cache


def test_likelihoods_are_floats_that_survive_travel():
    (value,) = harness().loglikelihood_rolling([rolling(TEXT)])
    for twin in (pickle.loads(pickle.dumps(value)), copy.deepcopy(value)):
        assert twin == value and isinstance(twin, float) and type(twin) is type(value)
        assert twin.terms == value.terms and twin.tokens == value.tokens and twin.headline == "elbo"
        np.testing.assert_array_equal(twin.blocks.nats_N, value.blocks.nats_N)
    assert type(value + 0) is float and math.isfinite(value)


@pytest.mark.parametrize("family", ["ar-tiny", "ltm-tiny"])
def test_no_batch_size_order_or_company_shows(family, tmp_path, monkeypatch):
    save_small(tmp_path, family)
    texts = [TEXT, "Short.", TEXT[::-1]]
    requests = [rolling(text, doc=i) for i, text in enumerate(texts)]
    found = []
    for number, (size, order) in enumerate([(1, (0, 1, 2)), (3, (2, 0, 1)), ("auto", (1, 2, 0))]):
        monkeypatch.setenv("LTM_HOME", str(tmp_path / f"answers-{number}"))
        directory = str(tmp_path / "models" / family)
        settings = "posterior.matmul=float32" if family == "ltm-tiny" else ""
        model = HarnessModel(pretrained=directory, batch_size=size, dtype="float64", settings=settings)
        values = dict(zip(order, model.loglikelihood_rolling([requests[i] for i in order]), strict=True))
        found.append([values[i] for i in range(3)])
    # The LTM fits in float32 at best, whatever the dtype of scoring.
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-12 if family == "ar-tiny" else 1e-5)


def test_noise_depends_on_seed_task_and_document_alone():
    def value(seed=0, task="t", doc=0):
        return float(harness(seed=seed).loglikelihood_rolling([rolling(TEXT, task, doc)])[0])

    assert value() == value()
    torch.manual_seed(99)
    assert value() == value()
    assert len({value(), value(seed=1), value(task="u"), value(doc=1)}) == 4


def test_answers_are_not_computed_twice():
    model = Bigram(BigramConfig())
    first = harness(model).loglikelihood_rolling([rolling(TEXT)])
    calls = model.calls
    assert harness(model, batch_size=2).loglikelihood_rolling([rolling(TEXT)]) == first
    assert model.calls == calls
    harness(model).loglikelihood_rolling([rolling(TEXT + "!")])
    assert model.calls > calls


def test_limited_blocks_are_the_first_ones_and_say_so():
    (whole,), (part,) = (harness(limit_blocks=n).loglikelihood_rolling([rolling(TEXT)]) for n in (None, 2))
    assert part.blocks.nats_N.tolist() == whole.blocks.nats_N[:2].tolist()
    assert not part.complete and part.stream_tokens == whole.tokens


def test_headline_only_gives_the_same_headline_and_nothing_else():
    model = NoisyBigram(BigramConfig())
    (whole,), (alone,) = (harness(model, headline_only=n).loglikelihood_rolling([rolling(TEXT)]) for n in (False, True))
    assert alone == whole and len(whole.likelihoods) > 1
    assert list(alone.likelihoods) == [model.headline()] == list(harness(model, headline_only=True).offered)


def test_an_empty_text_costs_nothing():
    (value,) = harness().loglikelihood_rolling([rolling("")])
    assert value == 0.0 and value.tokens == 0 and value.complete


def test_continuations_follow_the_chain_rule_of_an_exact_model():
    model = harness(Bigram(BigramConfig(block=64)))
    context, continuation = "the lazy dog", " sleeps"
    (whole, _), (given, _), (rest, _) = model.loglikelihood(
        [pair("", context + continuation), pair("", context), pair(context, continuation)]
    )
    assert given + rest == pytest.approx(whole, rel=1e-13)
    assert rest.tokens == len(continuation)


def test_spaces_at_the_seam_belong_to_the_continuation():
    model = harness(Bigram(BigramConfig(block=64)))
    (a, _), (b, _) = model.loglikelihood([pair("dog ", "sleeps"), pair("dog", " sleeps")])
    assert a == b and a.tokens == len(" sleeps")


def test_continuations_of_a_latent_model_use_its_predictive_bound():
    (value, _), (unconditional, _) = harness().loglikelihood([pair("dog", " naps"), pair("", "naps")])
    assert list(value.likelihoods) == ["predictive_bound"] and list(unconditional.likelihoods) == ["elbo"]


def test_is_greedy_is_what_greedy_decoding_gives():
    model = harness(Bigram(BigramConfig(block=64)))
    table = model.loaded.model.logits.detach()
    best, last = [], ord("x")
    for _ in range(5):
        last = int(table[last].argmax())
        best.append(last)
    tokens = model.loaded.tokenizer

    class Bytes(type(tokens)):
        """Lets a test name any bytes."""

        def encode(self, text):
            return np.frombuffer(text.encode("latin-1"), np.uint8).astype(np.int32)

    tokens.__class__ = Bytes
    text = bytes(best).decode("latin-1")
    other = text[:-1] + ("a" if text[-1] != "a" else "b")
    found = model.loglikelihood([pair("x", text), pair("x", other, idx=1), pair("x", text[:2], idx=2)])
    assert [same for _, same in found] == [True, False, True]


def test_answers_to_one_question_share_their_noise():
    model = harness(NoisyBigram(BigramConfig(block=64)))
    (a, _), (b, _) = model.loglikelihood([pair("dog", " naps", idx=0), pair("dog", " eats", idx=1)])
    exact = harness(Bigram(BigramConfig(block=64)))
    (c, _), (d, _) = exact.loglikelihood([pair("dog", " naps", idx=0), pair("dog", " eats", idx=1)])
    assert a - c == pytest.approx(b - d)


def test_what_does_not_fit_is_cut_on_the_left_and_counted(caplog):
    model = harness(Bigram(BigramConfig(block=8)))
    with caplog.at_level(logging.WARNING):
        (long, _), (short, _), (parts, greedy) = model.loglikelihood(
            [pair("0123456789", "abc"), pair("56789", "abc"), pair("01", "abcdefghijkl")]
        )
    assert long == short
    assert [r.getMessage() for r in caplog.records] == ["2 contexts shortened to fit blocks of 8 tokens"]
    (a, _), (b, _) = model.loglikelihood([pair("", "abcdefgh"), pair("", "ijkl")])
    assert parts == pytest.approx(a + b) and parts.tokens == 12 and not greedy
    # A limit on blocks is for whole texts: half a continuation is none.
    ((limited, _),) = harness(Bigram(BigramConfig(block=8)), limit_blocks=1).loglikelihood([pair("01", "abcdefghijkl")])
    assert limited == parts


def test_generation_stops_where_it_is_told():
    model = harness(Bigram(BigramConfig(block=64)))
    (free,) = model.generate_until([prompt("x", until=[], max_gen_toks=20)])
    stop = free[3:5]
    (cut,) = model.generate_until([prompt("x", until=[stop, "never"], max_gen_toks=20)])
    assert cut == free[: free.index(stop)]
    assert model.generate_until([prompt("x", until="", max_gen_toks=20)]) == [free]


def test_repeats_differ_when_sampling_and_nothing_else_matters():
    options = {"until": ["\n"], "do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
    sampled, greedy = prompt("x", **options), prompt("x", max_gen_toks=12)
    kept = copy.deepcopy(sampled.args)
    texts = harness(batch_size=1).generate_until([sampled] * 3 + [greedy] * 2 + [prompt("x", doc=1, **options)])
    assert len(set(texts[:3])) == 3 and texts[3] == texts[4] and texts[5] not in texts[:3]
    assert sampled.args == kept
    again = harness(seed=0, batch_size=4).generate_until([prompt("x", doc=1, **options), *[sampled] * 3])
    assert again == [texts[5], *texts[:3]]
    assert harness(seed=1).generate_until([sampled])[0] != texts[0]


def test_long_prompts_leave_room_for_the_answer(caplog):
    model = harness(Bigram(BigramConfig(block=16)))
    long, tail = "0123456789" * 3, ("0123456789" * 3)[-12:]
    assert model.generate_until([prompt(long, max_gen_toks=4)]) == model.generate_until([prompt(tail, max_gen_toks=4)])
    with caplog.at_level(logging.WARNING):
        model.generate_until([prompt(long, max_gen_toks=256)])
    assert {r.getMessage()[:17] for r in caplog.records} == {"1 prompt shortene", "1 answer shortene"}


def test_unknown_generation_options_are_not_ignored():
    with pytest.raises(UserError, match="unknown generation option 'top_q'; did you mean top_"):
        harness().generate_until([prompt("x", top_q=0.5)])
    with pytest.raises(UserError, match="top_p"):
        harness().generate_until([prompt("x", do_sample=True, top_p=-1.0)])


@pytest.mark.parametrize("number", [math.nan, -math.inf, math.inf])
def test_a_number_that_is_none_is_an_error_and_is_not_kept(number):
    model = Bigram(BigramConfig())
    with torch.no_grad():
        model.logits[:, ord("q")] = number
    for _ in range(2):
        with pytest.raises(UserError, match=r"document 0 block \d+: nats of exact is (nan|-inf)"):
            harness(model).loglikelihood_rolling([rolling(TEXT)])


def test_scoring_other_tokens_than_given_is_an_error(monkeypatch):
    model = Bigram(BigramConfig())
    original = model.log_likelihoods
    monkeypatch.setattr(model, "log_likelihoods", lambda tokens, **o: original(tokens[:, 1:], **{**o, "lengths": None}))
    with pytest.raises(UserError, match="covers 15 tokens, expected 16"):
        harness(model).loglikelihood_rolling([rolling("a" * 32)])


def test_arguments_as_lm_eval_gives_them(caplog):
    toy = loaded(Bigram(BigramConfig()))
    with caplog.at_level(logging.WARNING):
        model = HarnessModel.create_from_arg_obj(
            {"pretrained": toy, "draws": "16", "batch_size": "auto:4"}, {"batch_size": 1, "device": "cuda:0"}
        )
    assert model.runner.scorer.draws == 16 and model.runner.scorer.batch_size > 1
    # lm-eval's default, which nobody has asked for, unlike the model argument.
    for given, argument, rows in [(1, {}, None), (3, {}, 3), (1, {"batch_size": 1}, 1), (None, {}, None)]:
        made = HarnessModel.create_from_arg_obj({"pretrained": toy, **argument}, {"batch_size": given})
        assert made.runner.scorer.batch_size == (rows or model.runner.scorer.batch_size)
    assert torch.cuda.is_available() or (str(model.device) == "cpu" and "no GPU here" in caplog.text)
    for bad, words in [
        ({"drawz": 3}, r"unknown model argument 'drawz'; did you mean draws.*allowed: batch_size, checkpoint"),
        ({"draws": -3.0}, "draws=-3.0: expected a whole number of at least 1"),
        ({"batch_size": "many"}, "batch_size=many"),
        ({"dtype": "float8"}, "unknown dtype 'float8'"),
        ({"settings": "x=1"}, "settings and checkpoint are for models loaded by name"),
        ({"path": "elsewhere"}, "expected one of pretrained="),
    ]:
        with pytest.raises(UserError, match=words):
            HarnessModel(**{"pretrained": toy, "dtype": "float64", **bad})
    with pytest.raises(UserError, match="expected one of pretrained="):
        HarnessModel()


def test_lm_eval_keeps_its_own_models():
    from lm_eval.api.registry import get_model

    assert get_model("ltm") is HarnessModel and get_model("dummy").__name__ == "DummyLM"


def test_what_lm_eval_writes_beside_results():
    info = harness(draws=5, seed=3).get_model_info()
    assert info["likelihood"] == {"name": "elbo", "kind": "lower_bound", "draws": 5}
    assert info["companions"]["reused_noise_estimate"]["kind"] == "estimate"
    assert info["noise_seed"] == 3 and info["model_num_parameters"] == 258 * 257


def test_all_that_changes_numbers_changes_the_key_and_nothing_else_does(tmp_path):
    def key(*, task="t", model=None, name="toy", info=None, **options):
        toy = loaded(model or NoisyBigram(BigramConfig()), name, **(info or {}))
        found = HarnessModel(pretrained=toy, **{"dtype": "float64", **options})
        return cache_path(tmp_path, found.runner.circumstances(task))

    plain = key()
    weights = loaded(NoisyBigram(BigramConfig())).info["weights_digest"]
    same = [
        key(),
        key(batch_size=7),
        key(device="cpu"),
        key(limit_blocks=3),
        key(name="renamed", info={"weights_digest": weights}),
    ]
    other = [
        key(task="u"),
        key(seed=1),
        key(draws=2),
        key(dtype="float32"),
        key(model=NoisyBigram(BigramConfig(block=8))),
        key(info={"weights_digest": "0" * 64}),
        key(info={"config_digest": "0" * 64}),
    ]
    assert set(same) == {plain}
    assert len({plain, *other}) == 1 + len(other)


class OtherBigram(NoisyBigram):
    """Another family with the same config and weights in the same package: its answers are its own."""

    family = "other"

    def log_likelihoods(self, tokens_BL, **options):
        """Half of the other's."""
        found = super().log_likelihoods(tokens_BL, **options)
        return {name: dataclasses.replace(one, nats_B=one.nats_B / 2) for name, one in found.items()}


def test_two_families_with_one_config_have_answers_of_their_own():
    config = BigramConfig()
    first, second = (HarnessModel(pretrained=loaded(cls(config), "toy")) for cls in (NoisyBigram, OtherBigram))
    assert first.loaded.info["weights_digest"] == second.loaded.info["weights_digest"]
    assert first.loaded.info["config_digest"] == second.loaded.info["config_digest"]
    values = [float(model.loglikelihood_rolling([rolling("ab" * 9)])[0]) for model in (first, second, first)]
    assert values[1] == pytest.approx(values[0] / 2) and values[2] == values[0]
