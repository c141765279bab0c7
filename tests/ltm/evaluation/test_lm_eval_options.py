"""lm-eval's options as its users type them: honoured, taken with a note, or refused in a line that says what to do."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate, simple_evaluate
from lm_eval.tasks import TaskManager

from ltm import harness_requests
from ltm.data import corpora
from ltm.errors import UserError
from ltm.evaluation.lm_eval_options import MOST_ROWS, NotDecoded
from ltm.harness import HarnessModel
from tests.support.harness_models import Bigram, BigramConfig, loaded, save_small

ROOT = Path(__file__).parents[3]
QUESTIONS = [
    {"query": f"the cat {verb} on", "choices": ["the mat", "three", "a"], "label": n % 3}
    for n, verb in enumerate(("sat", "lay", "slept", "ran", "ate"))
]
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: {kind}
test_split: test
doc_to_text: "{{{{query}}}}"
doc_to_target: "{target}"
{more}
metric_list:
  - {{metric: {metric}, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
CHOICES = "doc_to_choice: choices"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Tasks of each type on the same questions."""
    directory = tmp_path_factory.mktemp("tasks")
    file = directory / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    for name, kind, target, more, metric in (
        ("choice", "multiple_choice", "{{label}}", CHOICES, "acc"),
        ("choice_exact", "multiple_choice", "{{label}}", CHOICES, "exact_match"),
        ("choice_own", "multiple_choice", "{{label}}", f"{CHOICES}\nprocess_results: !function own.results", "acc"),
        ("word", "loglikelihood", " the", "", "acc"),
        ("word_perplexity_only", "loglikelihood", " the", "", "perplexity"),
    ):
        text = TASK.format(name=name, file=file, kind=kind, target=target, more=more, metric=metric)
        (directory / f"{name}.yaml").write_text(text)
    (directory / "own.py").write_text(
        "def results(doc, results):\n    return {'acc': sum(int(s) for _, s in results)}\n"
    )
    return directory


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LTM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


def toy(seed: int = 0, **options: Any) -> HarnessModel:
    return HarnessModel(pretrained=loaded(Bigram(BigramConfig(block=64, table_seed=seed))), device="cpu", **options)


def manager(place: Path) -> TaskManager:
    return TaskManager(include_path=str(place), include_defaults=False)


def run(model: Any, place: Path, task: str, **options: Any) -> dict[str, Any]:
    found = simple_evaluate(model, tasks=[task], task_manager=manager(place), bootstrap_iters=0, **options)
    assert found is not None
    return found


def test_two_models_never_share_the_answers_of_use_cache(place, tmp_path):
    expected = [run(toy(seed), place, "choice", log_samples=True)["samples"]["choice"] for seed in (0, 1)]
    assert expected[0][0]["resps"] != expected[1][0]["resps"]
    for seed in (0, 1):
        with pytest.raises(
            UserError, match=r"--use_cache would take another model's.*leave it out.*kept in .*home/cache"
        ):
            run(toy(seed), place, "choice", use_cache=str(tmp_path / "shared"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"apply_chat_template": True}, "has no chat template; leave out --apply_chat_template"),
        ({"apply_chat_template": "default", "fewshot_as_multiturn": True}, "and --fewshot_as_multiturn"),
        ({"system_instruction": "Be brief."}, "follows no instruction; leave out --system_instruction"),
        ({"cache_requests": True}, "--cache_requests keeps prompts whose data have changed since; leave it out"),
        ({"limit": 0}, "--limit 0: expected a number of documents, or a share of them"),
        ({"limit": -0.5}, "--limit -0.5: expected"),
    ],
)
def test_what_no_base_model_can_do_is_refused(place, options, words):
    with pytest.raises(UserError, match=words):
        run(toy(), place, "choice", **options)


def test_a_chat_template_is_refused_wherever_lm_eval_asks_for_it():
    model = toy()
    for ask in (lambda: model.tokenizer_name, lambda: model.chat_template(True), lambda: model.apply_chat_template([])):
        with pytest.raises(UserError, match="toy is a base language model and has no chat template"):
            ask()


@pytest.mark.parametrize("size", [0, -1, "0", -3.0, 2.5, "many", "auto:x", "automatic", 10**9, math.inf, "1e99"])
def test_no_impossible_batch_size_is_taken(size):
    with pytest.raises(UserError, match=rf"^batch_size={re.escape(str(size))}: expected .* or auto$"):
        toy(batch_size=size)


def test_batch_sizes_that_are_honoured():
    auto = toy().runner.scorer.batch_size
    for size, rows in ((3, 3), ("3", 3), ("auto", auto), ("auto:4", auto), (None, auto), (MOST_ROWS, MOST_ROWS)):
        assert toy(batch_size=size).runner.scorer.batch_size == rows
    assert auto > 2 and toy(batch_size="auto", max_batch_size=2).runner.scorer.batch_size == 2
    assert toy(batch_size=5, max_batch_size=2).like().runner.scorer.batch_size == 5
    with pytest.raises(UserError, match="max_batch_size=0: expected"):
        toy(max_batch_size=0)


@pytest.mark.parametrize("device", ["mps", "gpu", 0, "0", "cuda:9", "cuda:", "cpu:0", "xpu:1", ""])
def test_devices_that_are_not_there_are_named_beside_those_that_are(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = "torch sees no GPU here; use --device cpu" if device == "cuda:9" else r"expected cpu, cuda or .*here: cpu$"
    with pytest.raises(UserError, match=f"^device '?{device}'?: {words}"):
        HarnessModel(pretrained=loaded(Bigram(BigramConfig())), device=device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    words = "torch sees 2 GPUs here, the last is cuda:1" if device == "cuda:9" else ".*here: cpu, cuda:0, cuda:1$"
    with pytest.raises(UserError, match=f"^device '?{device}'?: {words}"):
        HarnessModel(pretrained=loaded(Bigram(BigramConfig())), device=device)


@pytest.mark.parametrize(
    ("given", "note"),
    [
        (
            {"trust_remote_code": True},
            "trust_remote_code=True has no effect: code that comes with weights is never run",
        ),
        ({"parallelize": True}, "parallelize=True has no effect: the model runs whole on one device"),
        ({"dtype": "auto"}, "dtype=auto is float32 here"),
        ({"device_map": "auto"}, "device_map=auto has no effect"),
        ({"revision": "main"}, ""),
        ({"load_in_8bit": False}, ""),
        ({"backend": "causal"}, ""),
        ({"peft": None}, ""),
    ],
)
def test_arguments_of_other_backends_that_change_nothing_are_taken(given, note, caplog):
    request = Instance("loglikelihood", {}, ("the cat", " sat"), 0, metadata=("t", 0, 1))
    with caplog.at_level(logging.WARNING):
        found = toy(**given)
    assert note in caplog.text and bool(caplog.records) == bool(note)
    assert found.runner.dtype == "float32" and found.loglikelihood([request]) == toy().loglikelihood([request])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"revision": "step1000"}, "revision=step1000 is not supported; leave it out: download that revision"),
        ({"load_in_8bit": True}, "load_in_8bit=True is not supported; .* weights are scored as they are"),
        ({"peft": "some/adapter"}, "peft=some/adapter is not supported; .* merge or convert them"),
        ({"tokenizer": "gpt2"}, "tokenizer=gpt2 .* scored with its own tokenizer"),
        ({"max_length": 1024}, "max_length=1024 .* settings=max_length=N"),
        ({"add_bos_token": True}, "add_bos_token=True .* prefix=bos puts BOS"),
        ({"backend": "seq2seq"}, "backend=seq2seq is not supported"),
        ({"dtype": "half"}, "unknown dtype 'half'"),
        ({"headline_onyl": True}, "unknown model argument 'headline_onyl'; did you mean headline_only"),
    ],
)
def test_arguments_of_other_backends_that_would_change_numbers_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        toy(**given)


def parsed(**options: Any) -> harness_requests.GenerationRequest:
    return harness_requests.parse(options, eos_id=256)


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({"num_beams": 1}, {}),
        ({"num_return_sequences": 1, "repetition_penalty": 1.0, "min_p": 0}, {}),
        ({"do_sample": False, "temperature": 0.7}, {}),
        ({"temperature": 0}, {}),
        ({"do_sample": True, "temperature": 0.0}, {}),
        ({"do_sample": 1}, {"do_sample": True, "temperature": 1.0}),
        ({"temperature": "0.5"}, {"do_sample": True, "temperature": 0.5}),
        ({"do_sample": True, "top_k": 0, "top_p": 1.0}, {"do_sample": True}),
        ({"do_sample": True, "top_k": -1}, {"do_sample": True}),
        ({"max_new_tokens": 16}, {"max_gen_toks": 16}),
        ({"max_gen_toks": 16, "max_new_tokens": 16}, {"max_gen_toks": 16}),
        ({"max_gen_toks": "16"}, {"max_gen_toks": 16}),
        ({}, {"max_gen_toks": 256}),
        ({"until": "\n"}, {"until": ["\n"]}),
        ({"until": None}, {"until": []}),
        ({"until": ["", "a"]}, {"until": ["a"]}),
    ],
)
def test_generation_options_that_mean_the_same(options, same):
    assert parsed(**options) == parsed(**same)


def test_generation_options_are_what_they_say():
    wish = parsed(do_sample=True, temperature=0.5, top_k=3, top_p=0.9, max_gen_toks=7, until=["a", "b"])
    assert (wish.tokens, wish.until) == (7, ("a", "b"))
    assert (wish.sampling.temperature, wish.sampling.top_k, wish.sampling.top_p) == (0.5, 3, 0.9)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_beams": 4}, "num_beams=4 is not offered; leave it out, or say num_beams=1"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2 is not offered"),
        ({"seed": 3}, "say --model_args seed=N"),
        ({"do_sample": "yes"}, "do_sample=yes: expected true or false"),
        ({"do_sample": 2}, "do_sample=2: expected true or false"),
        ({"temperature": -1, "do_sample": True}, "temperature must be at least 0"),
        ({"temperature": "hot"}, "temperature=hot: expected a number"),
        ({"temperature": math.nan, "do_sample": True}, "temperature=nan: expected a number"),
        ({"top_k": 2.5, "do_sample": True}, "top_k=2.5: expected a whole number"),
        ({"top_k": -2, "do_sample": True}, "top_k must be at least 1"),
        ({"top_p": 0, "do_sample": True}, "top_p must be in"),
        ({"top_p": 1.5, "do_sample": True}, "top_p must be in"),
        ({"max_gen_toks": 0}, "max_gen_toks=0: expected a whole number of at least 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5: expected a whole number"),
        ({"max_gen_toks": 256, "max_new_tokens": 16}, "max_gen_toks=256 and max_new_tokens=16 disagree"),
        ({"until": 5}, "until=5: expected a text or a list of texts"),
        ({"until": ["a", 5]}, "expected a text or a list of texts"),
        ({"temprature": 0.5}, "unknown generation option 'temprature'; did you mean temperature"),
        ({"length_penalty": 1}, "unknown generation option 'length_penalty'"),
    ],
)
def test_generation_options_that_would_answer_another_question_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        parsed(**options)


PTB = [f" the company said it expects {word} growth in sales \n" for word in ("N %", "some", "no", "more", "less")]


@pytest.fixture
def data_dir(tmp_path) -> Path:
    (tmp_path / "data" / "ptb").mkdir(parents=True)
    (tmp_path / "data" / "ptb" / "validation.txt").write_text("".join(PTB))
    return tmp_path / "data"


def perplexity(model: Any, data_dir: Path, **options: Any) -> tuple[dict[str, Any], dict[str, int]]:
    tasks = TaskManager(include_path=str(ROOT / "tasks"), include_defaults=False, metadata={"data_dir": str(data_dir)})
    found = evaluate(model, tasks.load(["ltm_ptb"]), bootstrap_iters=0, **options)
    assert found is not None
    return found["results"]["ltm_ptb"], found["n-samples"]["ltm_ptb"]


@pytest.mark.parametrize(("limit", "kept"), [(2, 2), (2.0, 2), (0.3, 2), (0.6, 3), (4, 4)])
def test_a_limit_counts_the_documents_of_a_text(data_dir, tmp_path, limit, kept, caplog):
    (tmp_path / "short" / "ptb").mkdir(parents=True)
    (tmp_path / "short" / "ptb" / "validation.txt").write_text("".join(PTB[:kept]))
    expected, _ = perplexity(toy(), tmp_path / "short")
    with caplog.at_level(logging.WARNING):
        found, counted = perplexity(toy(), data_dir, limit=limit)
    assert found == expected and found["word_perplexity,none"] > 1
    assert counted == {"original": 5, "effective": kept}
    assert f"ltm_ptb: only the first {kept} of 5 documents (--limit); the result is partial" in caplog.text


def test_a_limit_that_leaves_nothing_out_marks_nothing(data_dir):
    whole = perplexity(toy(), data_dir)
    assert perplexity(toy(), data_dir, limit=5) == perplexity(toy(), data_dir, limit=500) == whole
    assert whole[1] == {"original": 1, "effective": 1}
    assert perplexity(toy(), data_dir, limit=3)[0]["word_perplexity,none"] != whole[0]["word_perplexity,none"]


def test_a_limit_holds_for_other_backends_too_and_samples_are_refused(data_dir):
    from lm_eval.api.model import LM

    class Plain(LM):
        """Says one nat per character."""

        def loglikelihood_rolling(self, requests):
            return [-float(len(request.args[0])) for request in requests]

        loglikelihood = generate_until = None

    found, counted = perplexity(Plain(), data_dir, limit=1)
    text = corpora.load("ptb", "validation", data_dir=data_dir).texts()[0]
    assert found["word_perplexity,none"] == pytest.approx(math.exp(len(text) / len(PTB[0].split())))
    assert counted == {"original": 5, "effective": 1}
    with pytest.raises(UserError, match="--samples: ltm_ptb is one text; --limit N"):
        perplexity(toy(), data_dir, samples={"ltm_ptb": [0]})


def test_tasks_of_many_documents_keep_lm_evals_own_limit(place):
    found = evaluate(toy(), manager(place).load(["choice"]), bootstrap_iters=0, limit=2)
    assert found is not None and found["n-samples"]["choice"] == {"original": 5, "effective": 2}


@pytest.mark.parametrize(
    ("task", "decoded"),
    [("choice", 0), ("word_perplexity_only", 0), ("choice_exact", 15), ("choice_own", 15), ("word", 5)],
)
def test_only_tasks_that_read_it_decode_greedily(place, task, decoded, monkeypatch):
    prompts: list[Any] = []
    original = Bigram.generate

    def counted(self, given, **options):
        prompts.extend(given)
        return original(self, given, **options)

    monkeypatch.setattr(Bigram, "generate", counted)
    model = toy()
    found = evaluate(model, manager(place).load([task]), bootstrap_iters=0, log_samples=True)
    assert found is not None and len(prompts) == decoded
    answers = [resp for sample in found["samples"][task] for (resp,) in sample["resps"]]
    assert {isinstance(same, NotDecoded) for _, same in answers} == {not decoded}
    # Outside of that evaluation the same model decodes for whoever asks.
    request = Instance("loglikelihood", {}, ("the cat sat on", " the mat"), 0, metadata=(task, 0, 1))
    ((value, same),) = model.loglikelihood([request])
    assert isinstance(same, bool) and (not task.startswith("choice") or float(value) == float(answers[0][0]))


def test_what_was_not_decoded_says_so():
    assert str(NotDecoded()) == "not decoded" and int(NotDecoded()) == 0 and not NotDecoded()


def test_the_command_ends_at_a_mistake_in_one_line(place, tmp_path, monkeypatch, capsys, caplog):
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.config.evaluate_config import EvaluatorConfig

    save_small(tmp_path / "home", "ar-tiny")
    # All of the command but its index of 14,000 tasks.
    monkeypatch.setattr(EvaluatorConfig, "process_tasks", lambda self, metadata: manager(place))
    command = ["lm_eval", "--model", "ltm", "--model_args", "pretrained=ar-tiny", "--tasks", "choice"]
    command += ["--trust_remote_code", "--device", "cpu"]
    for wrong, words in (
        (
            ["--use_cache", str(tmp_path / "shared")],
            "--use_cache would take another model's answers for those of ar-tiny",
        ),
        (["--apply_chat_template"], "ar-tiny is a base language model and has no chat template; leave out"),
        (["--system_instruction", "Be brief."], "ar-tiny is a base language model and follows no instruction"),
        (["--batch_size", "0"], "batch_size=0: expected a whole number of at least 1 or auto"),
        (["--device", "mps"], "device 'mps': expected cpu, cuda or cuda:N"),
    ):
        monkeypatch.setattr(sys, "argv", [*command, *wrong])
        with pytest.raises(SystemExit) as ended:
            cli_evaluate()
        assert ended.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"lm_eval: error: {words}")
    assert "trust_remote_code=True has no effect" in caplog.text
