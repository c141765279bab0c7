"""`ltm-eval --tasks generation,continuation` from the outside: what is generated, kept, shown, refused and resumed."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch

from ltm import tokenizer
from ltm.data import corpora
from ltm.errors import UserError
from ltm.evaluation.runner import Runner
from ltm.harness import HarnessModel
from ltm.result import find_results, read_records, read_result
from tasks import catalog, cli, models
from tasks.generation import gen_perplexity, mauve
from tasks.generation import text_statistics as counted
from tasks.generation.kind import Generation
from tasks.generation.passages import passages
from tasks.options import EvalOptions
from tests.support.harness_models import Bigram, BigramConfig, loaded, save_small

SHORT = ["--prompt-tokens", "8", "--new-tokens", "12", "--samples", "10"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A home with small models, the current directory elsewhere."""
    for name in ("ltm-tiny", "ar-tiny", "mdlm-tiny"):
        save_small(tmp_path / "home", name) if name != "mdlm-tiny" else _save_mdlm(tmp_path / "home")
    monkeypatch.setenv("LTM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _save_mdlm(home):
    from ltm import registry
    from ltm.training import checkpoint
    from tests.support.harness_models import TRAINING

    cls = registry.model_family("mdlm")
    tokens = tokenizer.build("bytes")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(cls.miniature(tokens.vocab_size, 32))
    checkpoint.save(
        home / "models" / "mdlm-tiny",
        1,
        name="mdlm-tiny",
        model=model,
        tokenizer=tokens,
        weights=model.state_dict(),
        state={},
        training=TRAINING,
    )


def only_result(directory):
    (path,) = find_results(directory)
    result = read_result(path)
    return result, read_records(path, result)


def values(result) -> dict[str, float]:
    return {metric.name: metric.value for metric in result.metrics}


def run(*arguments: str) -> int:
    return cli.main([*arguments, "--output", "results"])


def test_text_from_nothing_fills_a_block_and_its_statistics_can_be_computed_again(place, capsys):
    assert run("--model", "ar-tiny", "--tasks", "generation", "--samples", "12") == 0
    error = capsys.readouterr().err
    assert "no Gen PPL without a scorer: --scorer NAME" in error and "human text of that length" in error
    result, records = only_result(place / "results")
    assert result.status == "complete" and result.scoring["blocks"] == 12 and result.scoring["tokens"] == 12 * 32
    assert (result.scoring["new_tokens"], result.scoring["prompt_tokens"]) == (32, 0)
    assert (result.scoring["temperature"], result.scoring["top_p"], result.scoring["scorer"]) == (1.0, None, None)
    assert (result.scoring["dtype"], result.scoring["precision_of_token_draws"]) == ("float32", "float64")
    assert [record["sample"] for record in records] == list(range(12))
    assert all(len(record["ids"]) == 32 and record["prompt"] == "" for record in records)
    bytes_ = tokenizer.build("bytes")
    assert all(record["text"] == bytes_.decode(record["ids"]) for record in records)
    texts = [[token for token in record["ids"] if token != bytes_.eos_id] for record in records]
    found = values(result)
    assert found["unigram_entropy"] == pytest.approx(np.mean([counted.unigram_entropy(text) for text in texts]))
    assert found["distinct_2"] == counted.distinct(texts, 2).value
    assert found["self_bleu"] == counted.self_bleu(texts).value
    assert found["tokens_per_sample"] == np.mean([len(text) for text in texts])
    assert found["network_evaluations"] == 32 and found["empty"] == 0
    entropy = next(metric for metric in result.metrics if metric.name == "unigram_entropy")
    assert entropy.ci95.low < entropy.value < entropy.ci95.high and "12 samples" in entropy.ci95.method
    assert not any("gen_ppl" in name for name in found)
    assert not any(metric.headline for metric in result.metrics)


def test_continuations_start_from_the_corpus_and_the_same_prompts_for_every_model(place, capsys):
    assert run("--model", "ar-tiny,ltm-tiny,mdlm-tiny", "--tasks", "continuation", *SHORT, "--scorer", "ar-tiny") == 0
    error = capsys.readouterr().err
    assert "ar-tiny scored its own samples" in error and error.count("Gen PPL of human text by ar-tiny") == 3
    results = {read_result(path).model["name"]: path for path in find_results(place / "results")}
    kept = {name: read_records(path, read_result(path)) for name, path in results.items()}
    stream = tokenizer.build("bytes").encode("".join(corpora.load("pydocs", "validation").texts()))
    expected = [row[:8].tolist() for row in passages(stream, 20)[:10]]
    for records in kept.values():
        assert [record["prompt_ids"] for record in records] == expected
        assert all(len(record["ids"]) == 12 for record in records)
    assert len({json.dumps([record["ids"] for record in records]) for records in kept.values()}) == 3
    # The scorer's numbers are those of its own conditional likelihood.
    result, records = read_result(results["ltm-tiny"]), kept["ltm-tiny"]
    scorer = HarnessModel(pretrained="ar-tiny")
    again = gen_perplexity.score(scorer, "any", [r["text"] for r in records], [r["prompt"] for r in records])
    assert [r["scorer_nats"] for r in records] == pytest.approx(again.nats_N.tolist(), rel=1e-6)
    total, tokens = sum(r["scorer_nats"] for r in records), sum(r["scorer_tokens"] for r in records)
    assert values(result)["gen_ppl[ar-tiny]"] == pytest.approx(math.exp(-total / tokens))
    assert {"human_gen_ppl[ar-tiny]", "gen_ppl_mean_of_exp[ar-tiny]"} <= set(values(result))
    signed = [
        f"weights {scorer.loaded.info['weights_digest'][:12]}",
        f"config {scorer.loaded.info['config_digest'][:12]}",
    ]
    assert result.scoring["scorer"].split(", ")[:3] == ["ar-tiny", *signed]


def test_nothing_is_done_twice_and_another_scorer_needs_no_new_samples(place, monkeypatch, capsys):
    arguments = ["--model", "ar-tiny", "--tasks", "continuation", *SHORT]
    assert run(*arguments) == 0
    first, records = only_result(place / "results")
    monkeypatch.setattr(Runner, "generations", lambda *a: pytest.fail("generated again"))
    assert run(*arguments, "--show-samples", "2") == 0
    captured = capsys.readouterr()
    assert "nothing to do" in captured.err
    shown = [line for line in captured.out.splitlines() if "ar-tiny on ltm_continuation, sample" in line]
    assert len(shown) == 2 and f"[{records[0]['prompt']}]".splitlines()[0] in captured.out
    monkeypatch.undo()
    monkeypatch.setenv("LTM_HOME", str(place / "home"))
    monkeypatch.chdir(place)
    generate = []
    model_class = type(HarnessModel(pretrained="ar-tiny").loaded.model)
    monkeypatch.setattr(model_class, "generate", lambda *a, **k: generate.append(1))
    assert run(*arguments, "--scorer", "ltm-tiny") == 0
    assert generate == []
    results = [read_result(path) for path in find_results(place / "results")]
    scored = next(result for result in results if result.scoring["scorer"])
    metric = next(metric for metric in scored.metrics if metric.name == "gen_ppl[ltm-tiny]")
    assert metric.kind == "lower_bound"
    assert "is not exact, so its Gen PPL is marked: lower_bound" in capsys.readouterr().err
    assert values(scored)["unigram_entropy"] == values(first)["unigram_entropy"]
    # Another model of that name is another scorer, and another metric.
    shutil.copytree(place / "home" / "models" / "ltm-tiny", place / "elsewhere")
    assert run(*arguments, "--scorer", "elsewhere") == 0
    names = {metric.name for path in find_results(place / "results") for metric in read_result(path).metrics}
    digest = HarnessModel(pretrained="ltm-tiny").loaded.info["weights_digest"]
    assert generate == [] and f"gen_ppl[ltm-tiny@{digest[:8]}]" in names


def test_what_can_change_a_sample_is_in_the_key_and_the_batch_size_is_not(place):
    arguments = ["--model", "ar-tiny", "--tasks", "continuation", *SHORT]
    changes = [[], ["--temperature", "0.5"], ["--top-p", "0.9"], ["--seed", "1"], ["--new-tokens", "11"]]
    for count, change in enumerate(changes, start=1):
        assert run(*arguments, *change) == 0
        assert len(find_results(place / "results")) == count
    for same in (["--batch-size", "3"], ["--top-p", "1"], ["--temperature", "1"], ["--limit-blocks", "2"]):
        assert run(*arguments, *same) == 0
    assert len(find_results(place / "results")) == len(changes)


def test_greedy_is_the_same_for_every_seed_and_samples_are_not(place):
    for seed in ("0", "1"):
        assert run("--model", "ar-tiny", "--tasks", "continuation", *SHORT, "--seed", seed, "--temperature", "0") == 0
    texts = [[r["ids"] for r in read_records(p, read_result(p))] for p in find_results(place / "results")]
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks", "gen_ppl"], ["ltm_gen_ppl is Gen PPL, which needs a scorer", "--scorer ar-tiny"]),
        (["--tasks", "generation", "--scorer", "ar-tny"], ["--scorer ar-tny", "did you mean ar-tiny"]),
        (["--tasks", "generation", "--samples", "1"], ["--samples=1", "at least 2"]),
        (["--tasks", "generation", "--top-p", "1.5"], ["--top-p", "(0, 1]"]),
        (["--tasks", "generation", "--temperature", "-1"], ["--temperature", "at least 0"]),
        (["--tasks", "generation", "--new-tokens", "0"], ["--new-tokens=0"]),
        (["--tasks", "continuation", "--prompt-tokens", "0"], ["--prompt-tokens=0"]),
        (["--tasks", "generation", "--show-samples", "0"], ["--show-samples=0"]),
        (["--tasks", "generation", "--mauve", "ar-tiny"], ["at least 500 texts on each side, found 64"]),
    ],
)
def test_mistakes_are_said_before_any_model_is_opened(place, monkeypatch, capsys, arguments, words):
    monkeypatch.setattr(mauve, "check_available", lambda: None)
    monkeypatch.setattr(models, "open_model", lambda *a: pytest.fail("a model was opened"))
    assert run("--model", "ar-tiny", *arguments) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert not (place / "results").exists()


def test_what_does_not_fit_a_model_is_refused_and_what_a_model_can_go_beyond_is_not(place, capsys):
    long = ["--tasks", "continuation", "--samples", "4", "--prompt-tokens", "20", "--new-tokens", "30"]
    assert run("--model", "ar-tiny", *long) == 2
    assert "--prompt-tokens and --new-tokens must sum to at most 32" in capsys.readouterr().err
    assert run("--model", "ar-tiny", "--tasks", "generation", "--samples", "4", "--new-tokens", "33") == 2
    assert "for this model --new-tokens must be at most 32" in capsys.readouterr().err
    assert find_results(place / "results") == []
    assert run("--model", "mdlm-tiny", *long) == 0
    result, records = only_result(place / "results")
    assert all(len(record["ids"]) == 30 for record in records) and result.scoring["tokens"] == 120


def test_a_corpus_with_too_few_passages_is_said(place, capsys):
    assert run("--model", "ar-tiny", "--tasks", "continuation", *SHORT[:4], "--samples", "100000") == 2
    assert "pydocs/validation in tokens of bytes has" in capsys.readouterr().err


class Silent(Bigram):
    """Says EOS, and every third time a word."""

    def generate(self, prompts, *, max_new_tokens, sampling, rng):
        """Without noise."""
        from ltm.api import Generations

        spoken = [list(b"abcabc") if index % 3 == 0 else [256] * 6 for index in rng.indices]
        return Generations(tokens=spoken, network_evaluations=[6] * len(prompts))


def task_for(model, entry_name="ltm_generation", **options):
    task = Generation(catalog.read(entry_name), EvalOptions(**options))
    return task, HarnessModel(pretrained=loaded(model), dtype="float64")


def test_empty_generations_are_counted_and_what_they_lack_is_over_the_others(monkeypatch):
    task, model = task_for(Silent(BigramConfig()), samples=9)
    scorer = HarnessModel(pretrained=loaded(Bigram(BigramConfig())), headline_only=True)
    task.scorer = Known(scorer)
    found = task.measure(model, None)
    by_name = {metric.name: metric for metric in found.metrics}
    assert by_name["empty"].value == pytest.approx(6 / 9) and "6 of 9 samples are empty" in found.notes
    assert by_name["tokens_per_sample"].value == pytest.approx(2.0)
    assert by_name["unigram_entropy"].value == pytest.approx(math.log(3)) and by_name["unigram_entropy"].n == 3
    assert by_name["repetition"].value == 1.0 and by_name["self_bleu"].value == pytest.approx(1.0)
    assert by_name["gen_ppl[toy]"].n == 3
    assert [record["scorer_tokens"] for record in found.records] == [6, 0, 0] * 3
    assert [record["text"] for record in found.records[:2]] == ["abcabc", ""]


@dataclasses.dataclass
class Known:
    """A helper that is loaded already."""

    harness: HarnessModel

    def model(self, options):
        """It."""
        return self.harness


def test_all_empty_is_a_result_too():
    class Mute(Silent):
        def generate(self, prompts, **options):
            from ltm.api import Generations

            return Generations(tokens=[[256]] * len(prompts), network_evaluations=[1] * len(prompts))

    task, model = task_for(Mute(BigramConfig()), samples=3)
    task.scorer = Known(HarnessModel(pretrained=loaded(Bigram(BigramConfig()))))
    found = task.measure(model, None)
    own = {metric.name for metric in found.metrics if not metric.name.startswith("human_")}
    assert own == {"empty", "tokens_per_sample", "network_evaluations"}
    assert "the scorer found nothing to score" in " ".join(found.notes)


def test_mauve_has_its_ceiling_and_its_floor_beside_it_and_ranks(monkeypatch, capsys):
    """The divergence itself is replaced: which texts are compared with which is what is looked at."""
    monkeypatch.setattr(mauve, "check_available", lambda: None)
    monkeypatch.setattr(mauve, "check_size", lambda texts: None)
    compared = []

    def features(featuriser, texts):
        compared.append(list(texts))
        return np.zeros((len(texts), 2), np.float32)

    monkeypatch.setattr(mauve, "features", features)
    made = mauve.Mauve(mean=0.5, sd=0.1, star=0.6)
    monkeypatch.setattr(mauve, "mauve", lambda p, q: made)
    task, model = task_for(
        Bigram(BigramConfig(block=24)), "ltm_continuation", samples=10, prompt_tokens=8, new_tokens=12
    )
    task.featuriser = Known(HarnessModel(pretrained=loaded(Bigram(BigramConfig()))))
    found = task.measure(model, None)
    reference, own, ceiling, floor = compared
    human = [bytes(row.tolist()).decode(errors="replace") for row in task._passages(model)[:20]]
    assert reference == human[10:] and ceiling == human[:10]
    assert [sorted(text.split()) for text in floor] == [sorted(text.split()) for text in ceiling]
    assert [text[:4] for text in own] == [text[:4] for text in ceiling]  # the same prompts
    headline = [metric for metric in found.metrics if metric.headline]
    assert [metric.name for metric in headline] == ["mauve[toy]"] and headline[0].direction == "higher"
    assert headline[0].stderr_mc == pytest.approx(0.1 / math.sqrt(5)) and headline[0].n == 10
    names = {metric.name for metric in found.metrics}
    assert {"human_mauve[toy]", "shuffled_mauve[toy]", "mauve_kmeans_sd[toy]", "mauve_star[toy]"} <= names
    with pytest.raises(UserError, match="are needed"):
        task.samples = 10**6
        task.measure(model, None)


def test_passages_are_disjoint_cover_the_text_and_keep_their_order():
    stream = np.arange(103)
    found = passages(stream, 10)
    assert found.shape == (10, 10) and sorted(found.ravel().tolist()) == list(range(100))
    assert (found == passages(stream, 10)).all() and (found[:, 0] % 10 == 0).all()
    assert not (found == np.arange(100).reshape(10, 10)).all()
