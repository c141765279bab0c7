"""Stock tasks of lm-eval on local files: every family runs them, and the numbers are those of the contract by hand."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from ltm import api, registry, tokenizer
from ltm.api import Sampling
from ltm.config import config_digest, digest, to_dict
from ltm.errors import UserError
from ltm.harness import HarnessModel
from ltm.result import read_records, read_result
from ltm.rng import SequenceRng, seed_of
from tasks import catalog, cli
from tasks.likelihood import last_word_kind, yaml_functions
from tasks.likelihood.yaml_functions import cut_last_word
from tests.baselines.pretrained.test_pretrained import gpt2, plain_nats  # noqa: F401
from tests.support.harness_models import TRAINING, Bigram, BigramConfig, loaded, save_small

TEXTS = ["the cat sat on the mat", "a dog ran to a dog", "one two three two one", "the mat sat on the cat"]
QUESTIONS = [
    {"query": "the cat sat on", "choices": ["the mat", "three", "a"], "label": 0},
    {"query": "a dog ran", "choices": ["two one two", "to a dog"], "label": 1},
]
LAST_WORD = """
task: local_lambada
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{{{text.split(' ')[:-1]|join(' ')}}}}"
doc_to_target: "{{{{' '+text.split(' ')[-1]}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
CHOICE = """
task: local_hellaswag
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{query}}}}"
doc_to_target: "{{{{label}}}}"
doc_to_choice: "choices"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
FAMILIES = sorted(set(registry.names(registry.MODELS)) - {"pretrained"})
KINDS = {"known-source": "exact", "ar": "exact", "ngram": "exact"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two task files in the format of lambada_openai and hellaswag, on local data."""
    directory = tmp_path_factory.mktemp("stock")
    for name, template, rows in (
        ("lambada", LAST_WORD, [{"text": text} for text in TEXTS]),
        ("hellaswag", CHOICE, QUESTIONS),
    ):
        file = directory / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (directory / f"local_{name}.yaml").write_text(template.format(file=file))
    return directory


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Nothing from elsewhere, nothing left behind."""
    monkeypatch.setenv("LTM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def miniature(family: str, *settings: str) -> HarnessModel:
    """An untrained model over bytes, in memory."""
    cls = registry.model_family(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(cls.miniature(258, 32))
        if model.learns_by_counting:
            model.count(torch.tensor([list(text.encode()) for text in TEXTS if len(text) == 22]))
            model.finish()
    tokens = tokenizer.build("bytes")
    found = api.LoadedModel(
        model=model,
        tokenizer=tokens,
        name=family,
        directory=Path(),
        info={
            "family": family,
            "config": to_dict(model.config),
            "config_digest": config_digest(model.config),
            "weights_digest": digest(family),
            "tokenizer": {"name": tokens.name, "fingerprint": tokens.fingerprint},
            "training": TRAINING,
        },
    )
    return HarnessModel(pretrained=found, draws=2, batch_size=3)


def run(model, place, task: str) -> dict:
    manager = TaskManager(include_path=str(place), include_defaults=False)
    found = evaluate(model, manager.load([task]), bootstrap_iters=0, log_samples=True)
    assert found is not None
    return found


def by_hand(model: HarnessModel, task: str, document: int, context: str, continuation: str):
    """log p and whether greedy decoding agrees, from the contract alone, one text at a time."""
    ids, given = list((context + continuation).encode()), len(context.encode())
    inner, rng = model.loaded.model, SequenceRng(seed_of(0, task), [document << 32])
    estimate = inner.log_likelihood(torch.tensor([ids]), context=torch.tensor([given]), draws=2, rng=rng)
    decoded = inner.generate(
        [ids[:given]], max_new_tokens=len(ids) - given, sampling=Sampling(temperature=0), rng=rng
    ).tokens[0]
    return float(estimate.nats_B), decoded == ids[given:], estimate.kind


@pytest.mark.parametrize("family", FAMILIES)
def test_lambada_style(family, place):
    model = miniature(family)
    found = run(model, place, "local_lambada")
    expected = [by_hand(model, "local_lambada", n, *cut_last_word(text)) for n, text in enumerate(TEXTS)]
    for sample, (nats, greedy, kind) in zip(found["samples"]["local_lambada"], expected, strict=True):
        value, same = sample["filtered_resps"][0]
        assert float(value) == pytest.approx(nats, rel=1e-4) and bool(same) == greedy
        assert value.kind == kind == KINDS.get(family, "lower_bound") and value.tokens > 1
    results = found["results"]["local_lambada"]
    assert results["perplexity,none"] == pytest.approx(math.exp(-sum(e[0] for e in expected) / 4), rel=1e-4)
    assert results["acc,none"] == sum(e[1] for e in expected) / 4


def test_lambada_style_of_a_pretrained_model(place, gpt2):  # noqa: F811
    pytest.importorskip("transformers")
    harness = HarnessModel(pretrained=f"pretrained:{gpt2}", dtype="float64")
    found = run(harness, place, "local_lambada")
    encode, total = harness.loaded.tokenizer.encode, 0.0
    for sample, text in zip(found["samples"]["local_lambada"], TEXTS, strict=True):
        context, word = cut_last_word(text)
        given, whole = encode(context).tolist(), encode(text).tolist()
        if whole[: len(given)] != given:
            whole = given + encode(word).tolist()
        nats = sum(plain_nats(gpt2, whole, 279)[len(given) :])
        assert float(sample["filtered_resps"][0][0]) == pytest.approx(nats, rel=1e-9)
        total += nats
    assert found["results"]["local_lambada"]["perplexity,none"] == pytest.approx(math.exp(-total / 4))
    assert "acc,none" in run(harness, place, "local_hellaswag")["results"]["local_hellaswag"]


@pytest.mark.parametrize("family", FAMILIES)
def test_hellaswag_style(family, place):
    model = miniature(family)
    results = run(model, place, "local_hellaswag")["results"]["local_hellaswag"]
    right = right_a_byte = 0
    for n, question in enumerate(QUESTIONS):
        nats = [by_hand(model, "local_hellaswag", n, question["query"], f" {c}")[0] for c in question["choices"]]
        a_byte = [nats[c] / len(choice) for c, choice in enumerate(question["choices"])]
        right += max(range(len(nats)), key=nats.__getitem__) == question["label"]
        right_a_byte += max(range(len(nats)), key=a_byte.__getitem__) == question["label"]
    assert results["acc,none"] == right / 2 and results["acc_norm,none"] == right_a_byte / 2


def test_a_model_that_knows_the_words_gets_them_right(place):
    """Exact by hand: the table of a bigram model that was told every pair of these texts."""
    model = Bigram(BigramConfig(block=32))
    with torch.no_grad():
        for a, b in zip(b"the cat sat on the mat", b"he cat sat on the mat", strict=False):
            model.logits[a, b] += 20
    harness = HarnessModel(pretrained=loaded(model), dtype="float64")
    found = run(harness, place, "local_lambada")
    assert found["results"]["local_lambada"]["acc,none"] == sum(
        by_hand(harness, "local_lambada", n, *cut_last_word(text))[1] for n, text in enumerate(TEXTS)
    ) / len(TEXTS)


@pytest.mark.slow
def test_the_command_line_of_lm_eval(place, tmp_path):
    """`lm_eval --model ltm` offline on local files, as a user types it."""
    save_small(tmp_path / "home", "ltm-tiny")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "lm_eval", "--model", "ltm", "--model_args", "pretrained=ltm-tiny,draws=2"),
            *("--include_path", str(place), "--tasks", "local_lambada,local_hellaswag"),
            *("--output_path", str(tmp_path / "out"), "--device", "cpu"),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "LTM_NO_LM_EVAL_HOOK": ""},
        timeout=200,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    (file,) = (tmp_path / "out").rglob("results*.json")
    results = json.loads(file.read_text())
    assert set(results["results"]) == {"local_lambada", "local_hellaswag"}
    assert results["results"]["local_lambada"]["perplexity,none"] > 1


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("the cat sat", ("the cat", " sat")),
        ("the  cat \n", ("the", " cat")),
        ("``  well , rowan", ("``  well ,", " rowan")),
        ("alone", ("", "alone")),
        (" \n", ("", "")),
        ("tab\tand newline\nend", ("tab\tand newline", " end")),
    ],
)
def test_a_text_is_cut_before_its_last_word(text, parts):
    assert cut_last_word(text) == parts


def test_our_last_word_task_is_the_same_through_both_commands(tmp_path, monkeypatch, capsys):
    (tmp_path / "data" / "lambada").mkdir(parents=True)
    (tmp_path / "data" / "lambada" / "validation.txt").write_text("".join(f"{text}\n" for text in TEXTS))
    monkeypatch.setenv("LTM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    save_small(tmp_path / "home", "ltm-tiny")
    assert cli.main(["--model", "ltm-tiny", "--tasks", "lambada_last_word", "--draws", "2"]) == 0
    (path,) = (tmp_path / "results" / "ltm-tiny" / "ltm_lambada_last_word").glob("*.json")
    result = read_result(path)
    accuracy, perplexity = result.metric("accuracy"), result.metric("last_word_perplexity")
    assert result.status == "complete" and (accuracy.kind, accuracy.direction) == ("exact", "higher")
    assert (perplexity.likelihood, perplexity.kind) == ("predictive_bound", "lower_bound")
    records = read_records(path, result)
    assert [r["word"] for r in records] == ["mat", "dog", "one", "cat"]
    nats = [r["predictive_bound"] for r in records]
    assert perplexity.value == pytest.approx(math.exp(-sum(nats) / 4))

    model = HarnessModel(pretrained="ltm-tiny", draws=2)
    manager = TaskManager(include_path=str(catalog.DIRECTORY), include_defaults=False)
    found = evaluate(model, manager.load(["ltm_lambada_last_word"]), bootstrap_iters=0)
    results = found["results"]["ltm_lambada_last_word"]
    assert results["perplexity,none"] == pytest.approx(perplexity.value, rel=1e-12)
    assert results["acc,none"] == accuracy.value

    assert cli.main(["--model", "ltm-tiny", "--tasks", "lambada_last_word", "--limit-problems", "2"]) == 0
    assert "partial" in capsys.readouterr().out


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_blank_line_has_no_last_word_through_either_command(end, tmp_path, capsys):
    (tmp_path / "lambada").mkdir()
    (tmp_path / "lambada" / "validation.txt").write_text(f"the cat sat{end}{end}it ran", newline="")
    message = "lambada/validation: document 2 of 3 is blank and has no last word; remove blank lines"
    with pytest.raises(UserError, match=message):
        yaml_functions.load_last_words("lambada", "validation", data_dir=str(tmp_path))
    arguments = ["--model", "ltm-tiny", "--tasks", "lambada_last_word", "--data-dir", str(tmp_path)]
    assert cli.main(arguments) == 2 and message in capsys.readouterr().err


def test_the_weakest_kind_holds_for_the_mean():
    model = miniature("ltm")
    requests = [("", "mat"), ("the cat sat on the", " mat")]
    from lm_eval.api.instance import Instance

    found = model.loglikelihood(
        [Instance("loglikelihood", {}, pair, 0, metadata=("t", n, 1)) for n, pair in enumerate(requests)]
    )
    metrics = last_word_kind._metrics([value for value, _ in found], [same for _, same in found])
    assert {m.name: m.kind for m in metrics} == {"accuracy": "exact", "last_word_perplexity": "lower_bound"}
