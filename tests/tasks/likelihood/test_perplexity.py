"""The perplexity tasks: what lm-eval finds in them, what they score, and the start-up hook that makes them known."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from ltm.data import corpora
from ltm.data.split import PASSAGE
from ltm.errors import UserError
from ltm.harness import HarnessModel
from tasks import catalog
from tasks.generation import passages
from tasks.likelihood import yaml_functions
from tasks.likelihood.perplexity_kind import Perplexity
from tasks.options import EvalOptions
from tests.support.harness_models import Bigram, BigramConfig, NoisyBigram, loaded, save_small

PTB = " the company said it expects N % growth in sales \n <unk> inc. 's profit rose $ N million \n"


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("data")
    (directory / "ptb").mkdir()
    (directory / "ptb" / "validation.txt").write_text(PTB * 6)
    return directory


def manager(**metadata) -> TaskManager:
    return TaskManager(include_path=str(catalog.DIRECTORY), include_defaults=False, metadata=metadata)


def test_catalog_and_lm_eval_read_the_same_tasks():
    assert manager().all_subtasks == catalog.names()
    for name, entry in manager().task_index.items():
        if name in catalog.names():
            mine = catalog.read(name)
            assert entry.cfg["task"] == mine.name == name
            assert entry.cfg["metadata"]["version"] == mine.version
            if mine.kind == "perplexity":
                assert entry.cfg["dataset_kwargs"] == {"corpus": mine.corpus, "split": mine.split}
                assert entry.cfg["test_split"] == mine.split


def test_every_metric_that_results_gives_has_an_aggregation():
    import yaml  # type: ignore[import-untyped]

    text = (catalog.DIRECTORY / "_perplexity_yaml").read_text().replace("!function ", "")
    listed = {metric["metric"] for metric in yaml.safe_load(text)["metric_list"]}
    model = HarnessModel(pretrained=loaded(NoisyBigram(BigramConfig())), dtype="float64")
    from lm_eval.api.instance import Instance

    (value,) = model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, ("a" * 50,), 0)])
    found = yaml_functions.results({"bytes": 50, "words": 1, "corpus": "x", "split": "y"}, [value])
    assert set(found) == listed


CORPORA = ("ptb", "wikitext", "lm1b", "lambada", "ag_news", "pubmed", "arxiv", "openwebtext")
ROW = " The bakers ' oven , said one , cost $ N ( or more ) . \n"


@pytest.mark.parametrize("separated", [False, True])
def test_both_ways_give_the_same_digits_on_every_corpus(tmp_path, monkeypatch, separated):
    from tasks import cli

    save_small(tmp_path / "home", "ar-tiny")
    monkeypatch.setenv("LTM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LTM_DATA_DIR", str(tmp_path / "data"))
    for i, name in enumerate(CORPORA):
        (tmp_path / "data" / name).mkdir(parents=True)
        rows = [ROW.replace("one", name), "\n", *[ROW] * (i + 1)]
        if i % 2:
            (tmp_path / "data" / name / "validation.txt").write_text("".join(rows))
        else:
            text = "".join(json.dumps({"text": row}) + "\n" for row in rows)
            (tmp_path / "data" / name / "validation.jsonl").write_text(text)
    command = ["--model", "ar-tiny", "--tasks", ",".join(CORPORA), "--output", str(tmp_path / "results")]
    assert cli.main(command + ["--eos-between-documents"] * separated) == 0

    monkeypatch.setenv("LTM_HOME", str(tmp_path / "other"))
    save_small(tmp_path / "other", "ar-tiny")
    model = HarnessModel(pretrained="ar-tiny")
    tasks = manager(eos_between_documents=separated).load([f"ltm_{name}" for name in CORPORA])
    harness = evaluate(model, tasks, bootstrap_iters=0)["results"]
    results = [json.loads(file.read_text()) for file in (tmp_path / "results").glob("*/*/*.json")]
    assert len(results) == len(CORPORA)
    for result in results:
        split = corpora.load(result["data"]["corpus"], "validation")
        texts = split.texts()
        stream = sum(len(text.encode()) for text in texts) + (len(texts) - 1 if separated else 0)
        assert result["scoring"]["tokens"] == stream and result["scoring"]["eos_between_documents"] is separated
        # Whatever is put between documents, the units are the raw text's own.
        assert (result["data"]["bytes"], result["data"]["words"]) == (split.bytes, split.words)
        assert split.bytes == sum(len(document.encode()) for document in split.documents)
        theirs = harness[result["task"]["name"]]
        for metric in result["metrics"]:
            assert theirs[f"{metric['name']},none"] == metric["value"]
        assert theirs["token_perplexity_ci95_low,none"] == result["metrics"][0]["ci95"]["low"]


def test_separators_need_a_backend_that_knows_them_and_a_plain_yes_or_no(data_dir):
    (document,) = yaml_functions.load_text("ptb", "validation", data_dir=str(data_dir), eos_between_documents=True)[
        "validation"
    ]
    assert len(yaml_functions.text(document).documents) == 12
    with pytest.raises(UserError, match="eos_between_documents is for --model ltm"):
        yaml_functions.results(document, [-1000.0])
    with pytest.raises(UserError, match="eos_between_documents: expected true or false, found 'maybe'"):
        yaml_functions.load_text("ptb", "validation", data_dir=str(data_dir), eos_between_documents="maybe")


def test_names_short_and_full():
    assert catalog.resolve(["ptb", "ltm_ptb", "pydocs"]) == ["ltm_ptb", "ltm_pydocs"]
    with pytest.raises(UserError, match=r"unknown task 'ptv'; did you mean ptb\?"):
        catalog.resolve(["ptv"])
    with pytest.raises(UserError, match="expected at least one of"):
        catalog.resolve([])


def test_a_file_is_a_task_under_its_own_name(tmp_path):
    file = tmp_path / "My notes.v2.txt.gz"
    file.write_bytes(b"")
    assert catalog.resolve([f"text:{file}", "ptb"]) == [f"text:{file}", "ltm_ptb"]
    entry = catalog.read(f"text:{file}")
    assert (entry.name, entry.kind, entry.path) == ("text_My-notes.v2", "perplexity", file)
    with pytest.raises(UserError, match="no such file"):
        catalog.read(f"text:{tmp_path / 'gone.txt'}")


def test_the_document_is_the_detokenised_split_with_the_raw_counts(data_dir):
    loaded = yaml_functions.load_text("ptb", "validation", data_dir=str(data_dir), pretrained="anything")
    (document,) = loaded["validation"]
    text = corpora.load("ptb", "validation", data_dir=data_dir)
    assert document["text"] == "".join(text.texts()) == yaml_functions.text(document)
    assert document["text"].startswith("the company said it expects 1 % growth")
    assert document["bytes"] == len((PTB * 6).encode()) and document["words"] == len((PTB * 6).split())
    assert document["fingerprint"] == text.fingerprint


def test_line_ends_are_an_option_through_lm_eval_too(tmp_path):
    for name, end in (("plain", "\n"), ("windows", "\r\n")):
        (tmp_path / name / "ag_news").mkdir(parents=True)
        (tmp_path / name / "ag_news" / "validation.txt").write_text(f"One{end}two{end}", newline="")
    (plain,), (kept,), (read,) = (
        yaml_functions.load_text("ag_news", "validation", data_dir=str(tmp_path / name), **options)["validation"]
        for name, options in (("plain", {}), ("windows", {}), ("windows", {"newlines": "universal"}))
    )
    assert kept["text"] == "One\r\ntwo\r\n"
    assert (read["text"], read["bytes"], read["fingerprint"]) == (plain["text"], plain["bytes"], plain["fingerprint"])


def run(model, task, data_dir) -> dict:
    results = evaluate(model, manager(data_dir=str(data_dir)).load([task]), bootstrap_iters=0, log_samples=True)
    json.dumps(results["samples"], default=str, allow_nan=False)
    return {name.partition(",")[0]: value for name, value in results["results"][task].items() if value != "N/A"}


def test_an_exact_model_through_lm_eval_by_hand(data_dir):
    model = HarnessModel(pretrained=loaded(Bigram(BigramConfig(block=50))), dtype="float64")
    found = run(model, "ltm_ptb", data_dir)
    text = corpora.load("ptb", "validation", data_dir=data_dir)
    import torch

    data = torch.tensor(list("".join(text.texts()).encode()))
    nats = sum(float(model.loaded.model.nats_BL(block[None]).sum().detach()) for block in data.split(50))
    assert found["token_perplexity"] == pytest.approx(math.exp(-nats / len(data)), rel=1e-12)
    assert found["word_perplexity"] == pytest.approx(math.exp(-nats / text.words), rel=1e-12)
    assert found["bits_per_byte"] == pytest.approx(-nats / text.bytes / math.log(2), rel=1e-12)
    assert found["token_perplexity_ci95_low"] < found["token_perplexity"] < found["token_perplexity_ci95_high"]
    assert "token_perplexity_mc_se" not in found and "kl_per_token" not in found


def test_a_bound_through_lm_eval_has_its_parts(data_dir):
    found = run(HarnessModel(pretrained=loaded(NoisyBigram(BigramConfig())), dtype="float64"), "ltm_ptb", data_dir)
    assert found["kl_per_token"] == pytest.approx(NoisyBigram.kl)
    assert found["kl_per_token"] + found["reconstruction_per_token"] == pytest.approx(
        math.log(found["token_perplexity"]), rel=1e-12
    )
    assert found["importance_bound_token_perplexity"] < found["token_perplexity"]
    assert found["reused_noise_token_perplexity_estimate"] < found["importance_bound_token_perplexity"]
    assert 0 < found["token_perplexity_mc_se"] < 0.1 * found["token_perplexity"]


def test_a_backend_of_plain_floats_gets_what_floats_can_give(data_dir):
    from lm_eval.api.model import LM

    class Plain(LM):
        """Says 1000 nats of any text."""

        def loglikelihood_rolling(self, requests):
            return [-1000.0 for _ in requests]

        loglikelihood = generate_until = None

    found = run(Plain(), "ltm_ptb", data_dir)
    text = corpora.load("ptb", "validation", data_dir=data_dir)
    assert found["word_perplexity"] == pytest.approx(math.exp(1000 / text.words))
    assert found["bits_per_byte"] == pytest.approx(1000 / math.log(2) / text.bytes)
    assert "token_perplexity" not in found
    with pytest.raises(UserError, match="log-likelihood is nan"):
        yaml_functions.results({"bytes": 1, "words": 1, "corpus": "ptb", "split": "validation"}, [math.nan])


def test_a_part_of_a_text_has_no_words_or_bytes(data_dir):
    model = HarnessModel(pretrained=loaded(Bigram(BigramConfig())), dtype="float64", limit_blocks=3)
    found = run(model, "ltm_ptb", data_dir)
    assert "token_perplexity" in found and not {"word_perplexity", "bits_per_byte"} & set(found)


def test_an_excerpt_is_a_whole_text_of_its_own(tmp_path):
    (tmp_path / "ptb").mkdir()
    (tmp_path / "ptb" / "validation.txt").write_text("".join(f" the price of {n} shares rose \n" for n in range(1000)))
    model, options = loaded(Bigram(BigramConfig())), EvalOptions(data_dir=tmp_path, excerpt=PASSAGE)
    whole, part = (
        Perplexity(catalog.read("ltm_ptb"), each) for each in (dataclasses.replace(options, excerpt=None), options)
    )
    harness = HarnessModel(pretrained=model, dtype="float64")
    identities = [task.identity(harness) for task in (whole, part)]
    assert identities[0].key != identities[1].key and part.split.bytes < whole.split.bytes / 6
    found = part.measure(harness, identities[1])
    assert found.complete and found.data["bytes"] == part.split.bytes and found.data["source"]["excerpt"] == PASSAGE
    by_name = {m.name: m.value for m in found.metrics}
    assert by_name["bits_per_byte"] == pytest.approx(
        math.log2(by_name["token_perplexity"]) * found.tokens / part.split.bytes
    )


def test_modules_that_lm_eval_loads_by_path_import_none_of_ours_but_ltm():
    for module in (yaml_functions, passages):
        source = Path(module.__file__).read_text()
        imported = set(re.findall(r"^\s*(?:from|import) (\w+)", source, re.M))
        assert not imported & {"tasks", "baselines", "leaderboard"}


def python(code: str, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=True
    )


def test_the_hook_costs_next_to_nothing_and_can_be_turned_off():
    heavy = {"typing", "inspect", "importlib.metadata", "lm_eval", "numpy", "torch"}
    code = f"import sys; print(sorted({heavy} & set(sys.modules)), 'ltm._lm_eval_hook' in sys.modules)"
    assert python(code).stdout.strip() == "[] True"
    code = "import lm_eval.models; from lm_eval.api.registry import model_registry as r; print('ltm' in r, 'hf' in r)"
    assert python(code).stdout.strip() == "True True"
    assert python(code, LTM_NO_LM_EVAL_HOOK="1").stdout.strip() == "False True"


def test_the_hook_leaves_alone_whoever_wants_only_their_own_tasks(tmp_path):
    assert TaskManager(include_path=str(tmp_path), include_defaults=False).all_tasks == []


def test_a_broken_plugin_does_not_break_lm_eval():
    done = python(
        "from ltm import _lm_eval_hook as hook\n"
        "def broken(module): raise RuntimeError('boom')\n"
        "hook._AFTER_IMPORT['lm_eval.models'] = broken\n"
        "import lm_eval.models; print('alive')"
    )
    assert done.stdout.strip() == "alive" and "no plugin for lm_eval: RuntimeError('boom')" in done.stderr


def test_the_stock_command_beside_a_hostile_tasks_module_gives_our_digits(tmp_path, data_dir, monkeypatch):
    home, here = tmp_path / "home", tmp_path / "here"
    save_small(home, "ltm-tiny")
    here.mkdir()
    for name in ("tasks", "leaderboard", "baselines", "stats", "perplexity"):
        (here / f"{name}.py").write_text("raise RuntimeError('the wrong module')")
    environment = {**os.environ, "LTM_HOME": str(home), "LTM_DATA_DIR": str(data_dir), "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).parent / "lm_eval"), "--model", "ltm", "--model_args"]
    command += ["pretrained=ltm-tiny,draws=2", "--tasks", "ltm_ptb", "--output_path", "out"]
    done = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the wrong module" not in done.stderr
    (file,) = here.glob("out/*/results_*.json")
    stock = json.loads(file.read_text())
    assert stock["config"]["likelihood"] == {"name": "elbo", "kind": "lower_bound", "draws": 2}

    from tasks import cli

    # A home of its own: nothing of the answers above may be used again.
    save_small(tmp_path / "other", "ltm-tiny")
    monkeypatch.setenv("LTM_HOME", str(tmp_path / "other"))
    arguments = ["--model", "ltm-tiny", "--tasks", "ptb", "--data-dir", str(data_dir), "--draws", "2"]
    assert cli.main([*arguments, "--output", str(tmp_path / "results")]) == 0
    (file,) = (tmp_path / "results").glob("*/*/*.json")
    ours = {(m["name"], m["likelihood"]): m["value"] for m in json.loads(file.read_text())["metrics"]}
    for name, likelihood, theirs in [
        ("token_perplexity", "elbo", "token_perplexity"),
        ("word_perplexity", "elbo", "word_perplexity"),
        ("bits_per_byte", "elbo", "bits_per_byte"),
        ("kl_per_token", "elbo", "kl_per_token"),
        ("reconstruction_per_token", "elbo", "reconstruction_per_token"),
        ("token_perplexity", "importance_bound", "importance_bound_token_perplexity"),
        ("token_perplexity", "reused_noise_estimate", "reused_noise_token_perplexity_estimate"),
    ]:
        assert stock["results"]["ltm_ptb"][f"{theirs},none"] == ours[name, likelihood]
