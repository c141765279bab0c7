"""`ltm-eval` from the outside: mistakes are said before work is done, work is never done twice, numbers hold."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from ltm import model_store
from ltm.data import corpora
from ltm.result import Interval, Metric, find_results, read_records, read_result, write_result
from ltm.rng import SequenceRng, seed_of
from ltm.training import checkpoint
from tasks import cli, report, results
from tasks.likelihood.perplexity_kind import Perplexity
from tests.support.harness_models import save_small

PTB = " the company said it expects N % growth in sales \n <unk> inc. 's profit rose $ N million \n"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A home with two small models, and a directory of corpora, the current directory elsewhere."""
    for name in ("ltm-tiny", "ar-tiny"):
        save_small(tmp_path / "home", name)
    for name in ("ptb", "wikitext"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "validation.txt").write_text(PTB * 4)
    monkeypatch.setenv("LTM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LTM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tasks.cli", *arguments]


def found_cells(directory: Path) -> dict[tuple[str, str], object]:
    return {(c.model["name"], c.task["name"]): c for c in map(read_result, find_results(directory))}


def test_help_comes_at_once_and_without_heavy_imports():
    code = (
        "import sys, tasks.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'rich', 'lm_eval', 'scipy', 'yaml'} & set(sys.modules)), file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert done.stderr.strip() == "[]" and "--limit-blocks" in done.stdout
    assert min(seconds) < 0.3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "ltm-tiny", "--tasks", "ptv"], ["unknown task 'ptv'", "did you mean ptb"]),
        (["--model", "ltm-tny", "--tasks", "ptb"], ["unknown model 'ltm-tny'", "did you mean ltm-tiny"]),
        (["--model", "ltm-large", "--tasks", "ptb"], ["ltm-train ltm-large --corpus", "FLOPs"]),
        (["--model", "ltm-tiny", "--tasks", "text:gone.txt"], ["gone.txt: no such file"]),
        (["--model", "ltm-tiny", "--tasks", "text:a,b.txt"], ["a: no such file", "'a,b.txt'", "commas separate"]),
        (["--model", "ltm-tiny", "--tasks", "ptb,text:" + "x" * 5000], ["cannot read xxx", "name too long"]),
        (["--model", "ltm-tiny", "--tasks", "ptb", "--newlines", "unix"], ["--newlines", "known: kept, universal"]),
        (["--model", "ltm-tiny", "--tasks", "ptb", "--max-bytes", "5x"], ["--max-bytes", "500M", "'5x'"]),
        (["--model", "ltm-tiny", "--tasks", "ptb,text:latin.txt"], ["latin.txt: byte 3 (0xe9) is not UTF-8"]),
        (["--model", "ltm-tiny", "--tasks", "text:blank.txt"], ["text_blank/all: no text in 2 documents"]),
        (["--model", "ltm-tiny", "--tasks", ","], ["--tasks: expected one or more names"]),
        (["--model", "ltm-tiny", "--tasks", "ptb", "--set", "posterior.stepz=3"], ["posterior.stepz", "did you mean"]),
        (["--model", "ltm-tiny", "--tasks", "ptb", "--dtype", "float31"], ["unknown dtype", "float32"]),
        (["--model", "ltm-tiny", "--tasks", "ptb", "--draws", "0"], ["--draws=0", "at least 1"]),
        (["--model", "ltm-tiny", "--tasks", "ptb", "--batch-size", "x"], ["--batch-size=x"]),
        (["--model", "ltm-tiny", "--tasks", "ptb", "--device", "tpu"], ["device 'tpu'"]),
        (
            ["--model", "ltm-tiny", "--tasks", "ptb", "--data-dir", "nowhere"],
            ["--data-dir is nowhere", "not a directory"],
        ),
        (["--model", "ltm-tiny", "--tasks", "ptb", "--output", "file/results"], ["cannot write to file/results"]),
        (["--model", "ltm-tiny,ar-tiny", "--tasks", "ptb", "--checkpoint", "x"], ["--checkpoint is for one model"]),
        (["--model", "ltm-tiny", "--tasks", "ptb", "--checkpoint", "empty"], ["empty holds no checkpoint"]),
    ],
)
def test_mistakes_are_said_before_any_model_is_loaded(place, monkeypatch, capsys, arguments, words):
    (place / "file").write_text("")
    (place / "latin.txt").write_bytes(b"caf\xe9")
    (place / "blank.txt").write_text("\n \n")
    (place / "empty").mkdir()
    monkeypatch.setattr(checkpoint, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert "Traceback" not in error and not (place / "results").exists()


def test_a_split_that_is_not_there_is_said_before_any_model_is_loaded(place, monkeypatch, capsys):
    (place / "data" / "wikitext" / "validation.txt").unlink()
    monkeypatch.setattr(checkpoint, "load", lambda *a, **k: pytest.fail("a model was loaded"))
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb,wikitext"]) == 2
    assert "wikitext/validation" in capsys.readouterr().err


def test_data_out_of_reach_are_said_within_seconds(place):
    # An address that takes no connection stands for the hub.
    code = (
        "import sys, tasks.cli as c\n"
        "code = c.main(['--model', 'ltm-tiny', '--tasks', 'lm1b,arxiv'])\n"
        "print(sorted({'lm_eval', 'datasets', 'huggingface_hub'} & set(sys.modules)), code)"
    )
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(place), "HF_HUB_OFFLINE": "0"}
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert time.perf_counter() - started < 20
    assert done.stdout.strip() == "[] 2"
    # All that is missing, not the first alone.
    assert "lm1b/validation is not here" in done.stderr and "arxiv/validation is not here" in done.stderr
    assert done.stderr.count("or run once where the hub can be reached") == 2


def test_any_text_file_is_scored_under_its_own_name(place, capsys):
    (place / "my notes.txt").write_text(PTB * 3)
    arguments = ["--model", "ar-tiny", "--tasks", "text:my notes.txt,ptb"]
    assert cli.main(arguments) == 0
    found = found_cells(place / "results")
    result = found["ar-tiny", "text_my-notes"]
    # As it stands: not detokenised, and its units are the file's.
    assert result.scoring["tokens"] == result.data["bytes"] == len((PTB * 3).encode())
    assert result.data["source"] == {"kind": "file", "file": "my notes.txt"}
    (place / "my notes.txt").write_text(PTB * 4)
    assert cli.main(arguments) == 0
    assert len(find_results(place / "results")) == 3


def test_the_same_text_has_the_same_perplexity_however_its_file_is_written(place):
    text = PTB.replace(" \n", "\n") * 3
    files = {
        "plain.txt": text.encode(),
        "marked.TXT": b"\xef\xbb\xbf" + text.encode(),
        "windows.md": text.replace("\n", "\r\n").encode(),
        "mac": text.replace("\n", "\r").encode(),
        "one,two.txt": text.encode(),
        "日本.txt": text.encode(),
        "中国.txt": text.encode(),
        **({"\udce9.txt": text.encode()} if sys.platform == "linux" else {}),
    }
    for name, content in files.items():
        (place / name).write_bytes(content)
    (place / "data" / "ptb" / "validation.txt").write_bytes((PTB * 4).replace("\n", "\r\n").encode())
    (place / "table.csv").write_text(
        "id,body\n" + "".join(f'{n},"{line}\n"\n' for n, line in enumerate(text.split("\n")[:-1]))
    )
    tasks = ",".join(["ptb", *(f"text:{name}" for name in files), "text:table.csv"])
    arguments = ["--model", "ar-tiny", "--newlines", "universal", "--text-column", "body", "--tasks", tasks]
    assert cli.main(arguments) == 0
    found = {task: result for (_, task), result in found_cells(place / "results").items()}
    assert len(found) == len(files) + 2
    assert {"text_one-two", "text_日本", "text_windows.md", "text_mac", "text_table"} <= found.keys()
    plain = found["text_plain"]
    for task in found.keys() - {"ltm_ptb"}:
        assert found[task].metrics == plain.metrics and found[task].data["bytes"] == len(text), task
    assert found["text_mac"].data["source"]["newlines"] == "universal"
    # Kept, they are other text, under another key; ptb is read alike with and without the option.
    assert cli.main(["--model", "ar-tiny", "--tasks", "text:windows.md,ptb"]) == 0
    (kept,) = {r.key: r for r in map(read_result, find_results(place / "results"))}.keys() - {
        r.key for r in found.values()
    }
    kept = next(r for r in map(read_result, find_results(place / "results")) if r.key == kept)
    assert kept.task == found["text_windows.md"].task and kept.data["bytes"] == len(text) + text.count("\n")
    assert kept.metric("token_perplexity").value != plain.metric("token_perplexity").value


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_read_once_for_all_models(place, capsys):
    os.mkfifo(place / "pipe")
    arguments = ["--model", "ltm-tiny,ar-tiny", "--draws", "1", "--headline-only", "--tasks", "text:pipe"]
    writer = threading.Thread(target=lambda: (place / "pipe").write_text(PTB * 3))
    writer.start()
    time.sleep(0.1)  # the writer waits for a reader
    assert cli.main(arguments) == 0
    writer.join()
    found = found_cells(place / "results")
    assert {result.data["bytes"] for result in found.values()} == {len(PTB * 3)} and len(found) == 2
    assert cli.main(["--model", "ar-tiny", "--tasks", "text:/dev/zero", "--max-bytes", "100"]) == 2
    assert "/dev/zero: expected" in capsys.readouterr().err


def test_separators_are_another_protocol(place):
    arguments = ["--model", "ar-tiny", "--tasks", "ptb"]
    assert cli.main(arguments) == 0 and cli.main([*arguments, "--eos-between-documents"]) == 0
    plain, separated = sorted(map(read_result, find_results(place / "results")), key=lambda c: c.scoring["tokens"])
    assert separated.scoring["tokens"] == plain.scoring["tokens"] + len(corpora.load("ptb", "validation").documents) - 1
    assert separated.scoring["eos_between_documents"] and not plain.scoring["eos_between_documents"]
    assert plain.data == separated.data and plain.key != separated.key
    from leaderboard.board import board
    from leaderboard.entries import load

    assert len(board(load(place / "results")).sections) == 2


def test_several_models_are_paired_on_the_same_blocks(place, capsys):
    assert cli.main(["--model", "ar-tiny,ltm-tiny", "--tasks", "ptb,wikitext", "--draws", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("ltm-tiny − ar-tiny") == 2 and "where one is a bound" in shown
    found = found_cells(place / "results")
    first, other = found["ar-tiny", "ltm_ptb"], found["ltm-tiny", "ltm_ptb"]
    nats = [math.log(result.metric("token_perplexity").value) for result in (other, first)]
    difference = report.paired(other, first, place / "results")
    assert difference.value == pytest.approx(nats[0] - nats[1], rel=1e-9)
    assert difference.ci95[0] < difference.value < difference.ci95[1]
    assert f"{difference.value:+.4f} [" in shown
    # The words are explained where a verdict uses them.
    assert ("beyond doubt" in shown) == ("Beyond doubt: " in shown)
    save_small(place / "home", "ltm-tiny", seed=3, step=2)
    assert cli.main(["--model", "ar-tiny,ltm-tiny", "--tasks", "ptb", "--headline-only"]) == 0
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("On the same blocks") == 1
    assert "eyond doubt" not in shown, "without bounds from above nothing is"


def test_two_models_on_two_tasks_and_nothing_twice(place, capsys, monkeypatch):
    arguments = ["--model", "ltm-tiny,ar-tiny", "--tasks", "ptb,wikitext", "--draws", "2"]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "≤ " in shown and "next: ltm-leaderboard build --results results" in shown
    assert max(map(len, shown.splitlines())) <= 100
    found = found_cells(place / "results")
    assert set(found) == {(m, t) for m in ("ltm-tiny", "ar-tiny") for t in ("ltm_ptb", "ltm_wikitext")}
    text = corpora.load("ptb", "validation")
    result = found["ltm-tiny", "ltm_ptb"]
    assert result.status == "complete" and result.scoring["draws"] == 2 and result.scoring["block_length"] == 32
    assert result.scoring["tokens"] == len("".join(text.texts()).encode())
    assert result.data["bytes"] == text.bytes and result.data["words"] == text.words
    assert result.data["source"] == {"kind": "local", "file": "ptb/validation.txt"}
    assert str(place) not in json.dumps([result.data["source"], result.provenance["versions"]])
    assert result.provenance["command"] == "ltm-eval " + " ".join(arguments)
    assert {m.likelihood for m in result.metrics} == {
        *("elbo", "importance_bound", "tube_upper_bound", "reused_noise_estimate"),
    }
    parts = [result.metric(name).value for name in ("kl_per_token", "reconstruction_per_token")]
    assert math.exp(sum(parts)) == pytest.approx(result.metric("token_perplexity").value, rel=1e-12)
    assert result.metric("token_perplexity", "reused_noise_estimate").kind == "estimate"
    kinds = {m.name: m.kind for m in found["ar-tiny", "ltm_ptb"].metrics}
    assert kinds.pop("token_perplexity_mean_of_exp") == "estimate" and set(kinds.values()) == {"exact"}

    files = {path: path.read_bytes() for path in (place / "results").rglob("*.*")}
    monkeypatch.setattr(Perplexity, "measure", lambda *a: pytest.fail("scored again"))
    assert cli.main(arguments) == 0
    assert capsys.readouterr().err.count("complete, nothing to do") == 4
    assert {path: path.read_bytes() for path in (place / "results").rglob("*.*")} == files


def test_only_what_is_missing_is_done(place, monkeypatch):
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb"]) == 0
    done = []
    original = Perplexity.measure
    monkeypatch.setattr(Perplexity, "measure", lambda self, *a: (done.append(self.entry.name), original(self, *a))[1])
    for more in (["--batch-size", "3"], ["--device", "cpu"], ["--draws", "5"]):
        # A model without draws has none to change.
        assert cli.main(["--model", "ar-tiny", "--tasks", "ptb", *more]) == 0
    assert done == []
    assert cli.main(["--model", "ar-tiny", "--tasks", "wikitext,ptb"]) == 0
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb", "--seed", "1"]) == 0
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb", "--dtype", "float64"]) == 0
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb", "--set", "decoder.window=4"]) == 0
    save_small(place / "home", "ar-tiny", seed=1, step=2)
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb"]) == 0
    (place / "data" / "ptb" / "validation.txt").write_text(PTB * 5)
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb"]) == 0
    assert done == ["ltm_wikitext"] + ["ltm_ptb"] * 5
    assert len(find_results(place / "results")) == 7


def test_the_number_is_that_of_a_plain_loop(place):
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb", "--dtype", "float64"]) == 0
    ((path, result),) = [(p, read_result(p)) for p in find_results(place / "results")]
    found = checkpoint.load(model_store.find("ar-tiny"))
    model = found.model.double()
    ids = torch.from_numpy(found.tokenizer.encode("".join(corpora.load("ptb", "validation").texts()))).long()
    rows = []
    for i, block in enumerate(ids.split(model.block_length)):
        rng = SequenceRng(seed_of(0, "ltm_ptb"), [i])
        rows.append(float(model.log_likelihood(block[None], rng=rng).nats_B))
    assert result.metric("token_perplexity").value == pytest.approx(math.exp(-math.fsum(rows) / len(ids)), rel=1e-12)
    records = read_records(path, result)
    assert [r["block"] for r in records] == list(range(len(rows))) and sum(r["tokens"] for r in records) == len(ids)
    assert [r["exact"] for r in records] == pytest.approx(rows, rel=1e-12)


def test_a_quick_look_stays_partial_and_is_not_lost_on_the_whole(place):
    arguments = ["--model", "ar-tiny", "--tasks", "ptb"]
    assert cli.main([*arguments, "--limit-blocks", "3"]) == 0
    (result,) = map(read_result, find_results(place / "results"))
    assert result.status == "partial" and result.scoring["blocks"] == 3
    assert {m.name for m in result.metrics} == {"token_perplexity"}
    assert cli.main([*arguments, "--limit-blocks", "10000"]) == 0
    assert {c.status for c in map(read_result, find_results(place / "results"))} == {"partial", "complete"}


def test_broken_weights_give_no_result(place, capsys):
    found = checkpoint.load(model_store.find("ar-tiny"))
    weights = {name: torch.full_like(tensor, torch.nan) for name, tensor in found.model.state_dict().items()}
    training = found.info["training"]
    folder = place / "home" / "models" / "ar-tiny"
    checkpoint.save(
        folder, 2, name="ar-tiny", model=found.model, tokenizer=found.tokenizer, weights=weights, state={},
        training=training,
    )  # fmt: skip
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb"]) == 2
    error = capsys.readouterr().err
    assert "NaN or infinite" in error and "Traceback" not in error
    assert find_results(place / "results") == []


def test_a_preset_that_trains_itself_does_so_and_goes_on_when_unfinished(place, monkeypatch, capsys):
    import shutil

    from ltm.training import run

    asked = []

    def train_preset(name, *, wait=False):
        assert wait  # for another command that trains it
        asked.append(name)
        return save_small(place / "home", name)

    monkeypatch.setattr(run, "train_preset", train_preset)
    shutil.rmtree(place / "home" / "models" / "ar-tiny")
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb"]) == 0
    assert asked == ["ar-tiny"] and "training it first, as ltm-train ar-tiny would" in capsys.readouterr().err
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb"]) == 0
    assert asked == ["ar-tiny"]
    save_small(place / "home", "ar-tiny", step=2, complete=False)
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb"]) == 0
    assert asked == ["ar-tiny"] * 2


def test_killed_anywhere_the_same_command_goes_on_to_the_same_file(place, monkeypatch):
    (place / "data" / "ptb" / "validation.txt").write_text(PTB * 30)
    arguments = ["--model", "ltm-tiny", "--tasks", "ptb", "--draws", "2", "--batch-size", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with open("log", "wb") as log:
        process = subprocess.Popen(command(*arguments), env=environment, stdout=log, stderr=log)
    cache = place / "home" / "cache"
    deadline = time.monotonic() + 60
    while not any(path.read_bytes().count(b"\n") > 10 for path in cache.glob("*.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline, Path("log").read_text()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (file,) = cache.glob("*.jsonl")
    kept = file.read_bytes()
    kept = kept[: kept.rindex(b"\n") + 1]
    blocks = math.ceil(len("".join(corpora.load("ptb", "validation").texts()).encode()) / 32)
    assert 10 < kept.count(b"\n") < blocks and find_results(place / "results") == []

    assert cli.main(arguments) == 0
    assert file.read_bytes().startswith(kept)
    assert file.read_bytes().count(b"\n") == blocks + 1
    (resumed,) = map(read_result, find_results(place / "results"))

    monkeypatch.setenv("LTM_HOME", str(place / "again"))
    save_small(place / "again", "ltm-tiny")
    assert cli.main([*arguments, "--output", "unbroken"]) == 0
    (unbroken,) = map(read_result, find_results(place / "unbroken"))
    assert resumed.metrics == unbroken.metrics and resumed.key == unbroken.key


def test_ctrl_c_loses_nothing_and_says_how_to_go_on(place, monkeypatch, capsys):
    from ltm.evaluation.batches import BatchScorer

    original, calls = BatchScorer._batch, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(BatchScorer, "_batch", interrupted)
    arguments = ["--model", "ar-tiny", "--tasks", "ptb", "--batch-size", "2"]
    assert cli.main(arguments) == 130
    assert "issue the same command again" in capsys.readouterr().err
    assert cli.main(arguments) == 0
    (result,) = map(read_result, find_results(place / "results"))
    assert len(calls) == 1 + math.ceil(result.scoring["blocks"] / 2)


def test_numbers_too_good_to_be_true_are_pointed_out(place):
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb"]) == 0
    import dataclasses

    (result,) = map(read_result, find_results(place / "results"))
    low = Metric(
        name="token_perplexity", likelihood="elbo", headline=True, unit="token", value=math.exp(1.99), n=3,
        kind="lower_bound", ci95=Interval(low=7.0, high=8.0, method="x"),
    )  # fmt: skip
    gpt2 = {**result.tokenizer, "name": "gpt2"}
    suspect = dataclasses.replace(result, tokenizer=gpt2, metrics=(low,))
    assert "1.99 nats per GPT-2 token (elbo) is below 2.0; re-check the estimator" in str(results.too_good(suspect))
    for fine in (
        result,
        dataclasses.replace(suspect, metrics=(dataclasses.replace(low, value=math.exp(2.01)),)),
        dataclasses.replace(suspect, metrics=(dataclasses.replace(low, kind="estimate"),)),
    ):
        assert results.too_good(fine) is None


def test_a_cell_is_not_made_of_other_tokens_than_the_stream_has(place, monkeypatch, capsys):
    from ltm.harness import HarnessModel

    original = HarnessModel.loglikelihood_rolling

    def shorter(self, requests):
        self.limit_blocks = 2
        return original(self, requests)

    monkeypatch.setattr(HarnessModel, "loglikelihood_rolling", shorter)
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb"]) == 2
    assert "blocks, found 2; no result" in capsys.readouterr().err
    assert find_results(place / "results") == []


def test_a_result_of_an_earlier_version_is_not_made_again(place, capsys):
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb"]) == 0
    (path,) = find_results(place / "results")
    result, records = read_result(path), read_records(path, read_result(path))
    model = {name: value for name, value in result.model.items() if name not in ("class", "code")}
    for file in path.parent.iterdir():
        file.unlink()
    former = write_result(dataclasses.replace(result, model=model), place / "results", records=records)
    assert former != path
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb"]) == 0
    assert f"complete, nothing to do ({former.relative_to(place)})" in capsys.readouterr().err
    assert find_results(place / "results") == [former]


def test_a_result_of_other_code_is_named(place, capsys):
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb"]) == 0
    (path,) = find_results(place / "results")
    result = read_result(path)
    write_result(dataclasses.replace(result, model={**result.model, "code": "0" * 64}), place / "results")
    assert cli.main(["--model", "ar-tiny", "--tasks", "ptb"]) == 0
    assert "the model's code has changed since; to score it again, delete" in capsys.readouterr().err


def test_all_that_is_missing_is_said_at_once_and_the_fastest_way_first(place, monkeypatch, capsys):
    (place / "data" / "ptb" / "validation.txt").unlink()
    monkeypatch.setattr(model_store, "flops_per_second", lambda width: 1e12)
    monkeypatch.setattr(model_store.hub, "reachable", lambda: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(place / "hub"))
    assert cli.main(["--model", "ltm-large,ar-large", "--tasks", "ptb,wikitext,gsm8k"]) == 2
    error = capsys.readouterr().err
    expected = (
        "no data here for ptb/validation, gsm8k/test. A number with what is here:",
        "ltm-eval --model ltm-tiny --tasks pydocs",
        "ptb/validation is not here",
        "openai/gsm8k",
        "ltm-large has no weights in",
        "--model ltm-tiny: trains itself on first use",
        "ltm-train ltm-large --corpus openwebtext",
        "at the 1 TFLOP/s that matrix products reach on this machine, as just measured",
        "ar-large has no weights in",
    )
    places = [error.index(words) for words in expected]
    assert places == sorted(places) and "wikitext/validation" not in error and "pretrained:" not in error
    monkeypatch.setattr(model_store.hub, "reachable", lambda: True)
    assert cli.main(["--model", "ltm-large", "--tasks", "wikitext"]) == 2
    error = capsys.readouterr().err
    assert (
        error.index("--model pretrained:gpt2: public weights")
        < error.index("--model ltm-tiny")
        < error.index("ltm-train ltm-large")
    )


def test_a_setting_may_be_for_one_family_or_model(place, capsys):
    both = ["--model", "ltm-tiny,ar-tiny", "--tasks", "ptb", "--draws", "2"]
    assert cli.main([*both, "--set", "ltm.posterior.steps=2"]) == 0
    found = found_cells(place / "results")
    assert found["ltm-tiny", "ltm_ptb"].model["config"]["posterior"]["steps"] == 2
    # The same key as without a family, and by the model's name.
    for setting in ("posterior.steps=2", "ltm-tiny.posterior.steps=2"):
        assert cli.main(["--model", "ltm-tiny", "--tasks", "ptb", "--draws", "2", "--set", setting]) == 0
        assert "complete, nothing to do" in capsys.readouterr().err
    assert len(find_results(place / "results")) == 2
    assert cli.main([*both, "--set", "decoder.window=4", "--set", "ltm.posterior.steps=2"]) == 0
    windows = [read_result(path).model["config"]["decoder"]["window"] for path in find_results(place / "results")]
    assert sorted(windows) == [4, 4, 8, 8]

    for setting, words in (
        ("posterior.steps=2", "ar-tiny: unknown setting 'posterior.steps'"),
        (
            "vae.posterior.steps=2",
            "no model here is of the family vae; before a setting may be: ar, ar-tiny, ltm, ltm-t",
        ),
        ("ltm-tiy.posterior.steps=2", "before a setting 'ltm-tiy'; did you mean ltm-tiny"),
        ("ltm.posterior.stesp=2", "ltm-tiny: unknown setting 'posterior.stesp'; did you mean posterior.steps"),
        ("posteror.steps=2", "unknown setting 'posteror.steps'; did you mean posterior.steps"),
    ):
        assert cli.main([*both, "--set", setting]) == 2
        assert words in capsys.readouterr().err
    import ltm

    settings = ["ltm.posterior.steps=2"]
    again = ltm.evaluate(["ltm-tiny", "ar-tiny"], ["ptb"], output=place / "results", draws="2", settings=settings)
    assert [result.key for result in again] == [found[m, "ltm_ptb"].key for m in ("ltm-tiny", "ar-tiny")]


def test_models_of_one_name_are_told_apart_everywhere(place, capsys):
    first, second = save_small(place / "home", "ar-tiny"), save_small(place / "other", "ar-tiny", seed=1, step=2)
    digests = [checkpoint.read_info(folder)[1]["weights_digest"][:8] for folder in (first, second)]
    runs = [str(first), str(second)]
    assert cli.main(["--model", ",".join(runs), "--tasks", "ptb"]) == 0
    shown = capsys.readouterr()
    labels = [line.split(" on ltm_ptb: ")[0] for line in shown.err.splitlines() if "tokens in" in line]
    assert len(set(labels)) == 2 and all(label.startswith("ar-tiny (") for label in labels)
    if "weights" in labels[0]:
        assert labels == [f"ar-tiny (weights {digest})" for digest in digests]
    assert f"{labels[1]} − {labels[0]}" in " ".join(shown.out.split()) or "−" in shown.out
    assert all(f"{label} ltm_ptb" in shown.err for label in labels)
    assert "ar-tiny − ar-tiny" not in shown.out


def test_public_models_are_recognised(place, capsys):
    (place / "hf").mkdir()
    (place / "hf" / "config.json").write_text("{}")
    for name, words in (
        ("gpt2", "unknown model 'gpt2'; did you mean pretrained:gpt2?"),
        ("GPT2-XL", "did you mean pretrained:gpt2-xl?"),
        ("EleutherAI/pythia-160m", "did you mean pretrained:EleutherAI/pythia-160m?"),
        ("meta-llama/Llama-3.2-1B", "did you mean pretrained:meta-llama/Llama-3.2-1B?"),
        ("./hf", "did you mean pretrained:hf?"),
        ("hf", "did you mean pretrained:hf?"),
    ):
        assert cli.main(["--model", name, "--tasks", "ptb"]) == 2
        assert words in capsys.readouterr().err
    assert cli.main(["--model", "ar-tiny", "--tasks", "gen_ppl", "--scorer", "gpt2-large"]) == 2
    assert (
        "--scorer gpt2-large: unknown model 'gpt2-large'; did you mean pretrained:gpt2-large?"
        in capsys.readouterr().err
    )


def test_files_of_one_name_are_told_apart(place, capsys):
    for folder, text in (("a", PTB * 3), ("b", PTB * 5)):
        (place / folder).mkdir()
        (place / folder / "notes.txt").write_text(text)
    assert cli.main(["--model", "ar-tiny", "--tasks", "text:a/notes.txt,text:b/notes.txt"]) == 0
    texts = {read_result(path).data["fingerprint"][:8] for path in find_results(place / "results")}
    shown = capsys.readouterr().out
    assert len(texts) == 2 and all(f"text_notes ({text})" in shown for text in texts)
