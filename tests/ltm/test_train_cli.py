"""`ltm-train`: what it refuses and in which words, a whole run, and Ctrl-C in the middle of one."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ltm import files, model_store, registry
from ltm.api import Preset
from ltm.data import corpora
from ltm.devices import check_device
from ltm.errors import UserError
from ltm.files import locked
from ltm.known_sources.base import recorded
from ltm.known_sources.topics import Topics
from ltm.model_store import training_advice
from ltm.train_cli import main, parser
from ltm.training import checkpoint
from ltm.training.run import configure, train_preset
from tests.support.miniature_runs import log, text

ROOT = Path(__file__).parents[2]
MINIATURE = [
    "decoder.layers=2",
    "decoder.width=8",
    "decoder.heads=2",
    "decoder.hidden=16",
    "decoder.max_length=17",
    "decoder.window=4",
]
RECIPE = ["training.batch=4", "training.accumulation=2", "training.matmul=float32"]
LATENT = ["latents=4", "posterior.steps=4", "posterior.matmul=float32"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory of corpora with 20 kB of text."""
    (tmp_path / "data" / "toy").mkdir(parents=True)
    lines = text(520)
    (tmp_path / "data" / "toy" / "train.txt").write_text("".join(lines))
    assert sum(map(len, lines)) > 20_000
    return tmp_path / "data"


def command(name: str, data: Path, output: Path, *more: str, updates: int = 6) -> list[str]:
    """Arguments of a run of a few updates on the toy corpus."""
    settings = MINIATURE + RECIPE + (LATENT if name.startswith("ltm") else [])
    return [
        *(name, "--corpus", "toy", "--data-dir", str(data), "--output", str(output), "--tokenizer", "bytes"),
        *("--budget", f"tokens={updates * 8 * 16}"),
        *(argument for setting in settings for argument in ("--set", setting)),
        *more,
    ]


def process(arguments: list[str], *before: str, **options: Any) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *before, "-m", "ltm.train_cli", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ltm-tinny", "--corpus", "toy"], "unknown model 'ltm-tinny'; did you mean ltm-tiny"),
        (["ltm-tiny", "--corpus", "tooy"], "unknown corpus 'tooy'; did you mean toy"),
        (["ltm-tiny", "--corpus", "toy", "--split", "trian"], "unknown split of toy 'trian'; did you mean train"),
        (["ltm-tiny", "--corpus", "toy", "--tokenizer", "bpe-x"], "unknown tokenizer 'bpe-x'"),
        (["ltm-tiny", "--corpus", "toy", "--set", "posterior.stesp=3"], "did you mean posterior.steps"),
        (["ar-tiny", "--corpus", "toy", "--set", "posterior.steps=3"], "unknown setting 'posterior.steps'"),
        (["ar-tiny", "--corpus", "toy", "--set", "training.lrr=3"], "did you mean training.lr"),
        (["ar-tiny", "--corpus", "toy", "--set", "lr=3"], "unknown setting 'lr'; did you mean training.lr"),
        (["ar-tiny", "--corpus", "toy", "--set", "training.lr=0"], "lr and clip positive"),
        (["ar-tiny", "--corpus", "toy", "--set", "training.beta2=1"], "beta1 and beta2 must be in [0, 1)"),
        (["ar-tiny", "--corpus", "toy", "--set", "decoder.width=ten"], "decoder.width: expected int, found 'ten'"),
        (["ar-tiny", "--corpus", "toy", "--set", "decoder.heads=7"], "width 128 must be"),
        (["ar-tiny", "--corpus", "toy", "--set", "training.lr"], "expected field=value"),
        (["ar-tiny", "--corpus", "toy", "--set", "vocab_size=9"], "vocab_size follows from the tokenizer"),
        (["ar-tiny", "--corpus", "toy", "--budget", "50M"], "budget '50M': expected tokens=50M, flops=1e15 or"),
        (["ar-tiny", "--corpus", "toy", "--budget", "tokens=-3"], "budget 'tokens=-3': expected tokens=50M"),
        (["ar-tiny", "--corpus", "toy", "--seed", "-1"], "seed must be in [0, 2^63), found -1"),
        (["ar-tiny", "--corpus", "toy", "--device", "gpu"], "device 'gpu': expected cpu, cuda or cuda:N"),
        (
            ["ar-tiny", "--corpus", "toy", "--output", "data/toy/train.txt/run"],
            "cannot write to data/toy/train.txt/run",
        ),
        (["ar-tiny", "--corpus", "toy", "--output", "data/toy/train.txt"], "choose another with --output"),
        (["ar-tiny", "--corpus", "toy", "--data-dir", "nowhere"], "--data-dir is nowhere, which is not a directory"),
        (["ar-tiny", "--corpus", "short", "--tokenizer", "bytes"], "fewer than the 127 of one block"),
        (["ar-tiny", "--corpus", "empty", "--tokenizer", "bytes"], "empty/train: no text"),
        (["ar-tiny", "--corpus", "latin", "--tokenizer", "bytes"], "byte 3 (0xe9) is not UTF-8"),
        (["ar-tiny", "--corpus", "short"], "bpe-2048: the text repeats too little"),
    ],
)
def test_mistakes_end_with_code_2_and_what_mends_them(
    arguments: list[str],
    message: str,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(data.parent)
    monkeypatch.setenv("LTM_DATA_DIR", "data")
    for corpus, content in (("short", b"a few words\n"), ("empty", b""), ("latin", b"caf\xe9\n")):
        (data / corpus).mkdir()
        (data / corpus / "train.txt").write_bytes(content)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""
    assert "Traceback" not in printed.err and printed.err.count("error:") == 1
    assert not list(data.parent.rglob("step-*")) and not list(files.home().rglob("step-*"))


def test_a_gpu_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:0"):
        with pytest.raises(UserError, match=f"device {device}: torch sees no GPU here; use --device cpu"):
            check_device(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda")
    check_device("cuda:1")
    with pytest.raises(UserError, match="device cuda:2: torch sees 2 GPUs here, the last is cuda:1"):
        check_device("cuda:2")
    for device in ("cuda:x", "cpu:0", "mps", ""):
        with pytest.raises(UserError, match="expected cpu, cuda or cuda:N"):
            check_device(device)


def test_a_batch_that_processes_cannot_share_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert main(command("ar-tiny", data, tmp_path / "run")) == 2
    assert "training.batch 4 must be a multiple of the 3 processes" in capsys.readouterr().err


def test_help_starts_at_once_and_without_torch() -> None:
    code = "import sys, ltm.train_cli as t\ntry: t.main(['--help'])\nexcept SystemExit as e: assert not e.code\n"
    code += "heavy = {'torch', 'numpy', 'rich', 'tokenizers'} & {*sys.modules}; assert not heavy, heavy"
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        seconds.append(time.monotonic() - started)
    assert found.stdout.startswith("usage: ltm-train") and "Ctrl-C" in found.stdout
    assert min(seconds) < 0.3


def test_a_run_from_text_to_weights(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "runs" / "my ltm"
    arguments = command("ltm-tiny", data, output)
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "parameters, bytes tokenizer; toy/train: " in printed.err and "6 updates" in printed.err
    assert f"ltm-tiny: trained; weights in {output}/step-00000006-final" in printed.err
    followed = shlex.split(printed.out.removeprefix("next: "))
    assert followed[:3] == ["ltm-eval", "--model", "ltm-tiny"] and str(output) in followed and str(data) in followed

    loaded = checkpoint.load(model_store.find("ltm-tiny", checkpoint=str(output)))
    training = loaded.info["training"]
    assert loaded.name == "ltm-tiny" and loaded.tokenizer.name == "bytes" and loaded.model.config.vocab_size == 258
    assert loaded.model.config.decoder.width == 8 and loaded.model.config.posterior.steps == 4
    assert training["complete"] and training["corpus"] == "toy" and training["split"] == "train"
    assert training["tokens"] == 6 * 8 * 16 and training["steps"] == 6 and not training["eos_between_documents"]
    assert training["flops"] > 0 and training["paper_flops"] > 0 and training["seconds"] > 0
    assert [line["step"] for line in log(output)] == list(range(1, 7))
    assert all(math.isfinite(value) for line in log(output) for value in line.values())
    assert {"loss", "kl_per_token", "nelbo", "lr", "gradient_norm"} <= log(output)[0].keys()

    # Again: nothing to do, and nothing done.
    before = {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.name != ".lock"}
    assert main(arguments) == 0
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.name != ".lock"} == before
    capsys.readouterr()

    # Another recipe in the same place.
    assert main([*arguments, "--set", "training.lr=0.5"]) == 2
    assert "holds another run: its lr is 0.002, this command's 0.5. Add --fresh" in capsys.readouterr().err
    assert main([*arguments, "--seed", "3"]) == 2
    assert "its seed is 0, this command's 3" in capsys.readouterr().err
    assert main([*arguments, "--set", "posterior.lr=0.5"]) == 2
    assert "its model.posterior.lr is 0.2, this command's 0.5" in capsys.readouterr().err
    assert main([*arguments, "--tokenizer", "bpe-260"]) == 2
    assert "holds another run: its" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in output.rglob("*") if p.name != ".lock"} == before


def test_a_finished_run_goes_on_to_a_larger_budget_on_request(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    assert main(command("ar-tiny", data, output, updates=3)) == 0
    before = checkpoint.read_info(output)[1]
    larger = command("ar-tiny", data, output, updates=6)
    assert main(larger) == 2
    error = capsys.readouterr().err
    assert "holds another run: its budget is 'tokens=384', this command's 'tokens=768'" in error and "--extend" in error
    assert checkpoint.read_info(output)[1] == before
    assert main([*command("ar-tiny", data, output, updates=2), "--extend"]) == 2
    assert main([*larger, "--extend", "--set", "training.lr=0.5"]) == 2
    assert "its lr is 0.002, this command's 0.5" in capsys.readouterr().err

    assert main([*larger, "--extend"]) == 0
    after = checkpoint.read_info(output)[1]
    training, recipe = after["training"], after["training"]["recipe"]
    assert (training["steps"], training["tokens"], training["complete"]) == (6, 768, True)
    assert recipe["extended"] == "tokens=384 (3 updates)" and recipe["budget"] == "tokens=768"
    assert after["weights_digest"] != before["weights_digest"] and "extended" not in before["training"]["recipe"]
    # The data go on where they stopped, and the learning rate is that of the larger budget.
    assert main(command("ar-tiny", data, tmp_path / "fresh", updates=6)) == 0
    assert [line["step"] for line in log(output)] == list(range(1, 7))
    assert [line["lr"] for line in log(output)[3:]] == [line["lr"] for line in log(tmp_path / "fresh")[3:]]
    assert "extended" not in checkpoint.read_info(tmp_path / "fresh")[1]["training"]["recipe"]

    assert main([*larger, "--extend"]) == 0 and checkpoint.read_info(output)[1] == after
    assert main(larger) == 2
    assert "was extended from tokens=384 (3 updates); add --extend to go on with it" in capsys.readouterr().err
    assert main([*command("ar-tiny", data, output, updates=7), "--extend"]) == 0
    recipe = checkpoint.read_info(output)[1]["training"]["recipe"]
    assert recipe["extended"] == "tokens=384 (3 updates), then tokens=768 (6 updates)"


def test_counting_more_is_counting_anew(data: Path, tmp_path: Path) -> None:
    def counts(output: str, tokens: int) -> dict[str, Any]:
        arguments = ["ngram-tiny", "--corpus", "toy", "--data-dir", str(data), "--tokenizer", "bytes"]
        arguments += ["--output", str(tmp_path / output), "--budget", f"tokens={tokens}"]
        assert main(arguments) == 0
        return checkpoint.read_info(tmp_path / output)[1]

    small, grown, fresh = counts("a", 2000), counts("a", 8000), counts("b", 8000)
    assert grown["weights_digest"] == fresh["weights_digest"] != small["weights_digest"]
    assert grown["training"]["tokens"] == fresh["training"]["tokens"] > small["training"]["tokens"]


def test_what_comes_next_has_its_data_here_and_is_not_done_yet(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    arguments = command("ar-tiny", data, tmp_path / "run", updates=1)
    assert main(arguments) == 0
    assert "--tasks pydocs " in capsys.readouterr().out
    (data / "ptb").mkdir()
    (data / "ptb" / "validation.txt").write_text("a b c\n" * 20)
    assert main(arguments) == 0
    suggested = capsys.readouterr().out
    assert "--tasks ptb " in suggested
    from tasks import cli

    assert cli.main(shlex.split(suggested.removeprefix("next: "))[1:]) == 0
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().out == "next: ltm-leaderboard build --results results\n"


def test_the_rate_of_this_machine_is_measured_quickly() -> None:
    from ltm.devices import flops_per_second

    flops_per_second(64)
    started = time.perf_counter()
    assert 1e6 < flops_per_second(256) < 1e16
    assert time.perf_counter() - started < 5


def test_fresh_replaces_a_run_and_nothing_else(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    arguments = command("ar-tiny", data, output, updates=2)
    assert main(arguments) == 0
    (output / "notes.md").write_text("mine")
    before = checkpoint.read_info(output)[1]["weights_digest"]
    # A mistake beside --fresh must not cost the run.
    for mistake in (["--split", "trian"], ["--set", "training.lr=x"], ["--tokenizer", "bpe-x"], ["--device", "gpu"]):
        assert main([*arguments, "--fresh", *mistake]) == 2
        assert checkpoint.read_info(output)[1]["weights_digest"] == before
    assert main([*arguments, "--fresh", "--seed", "1"]) == 0
    info = checkpoint.read_info(output)[1]
    assert info["weights_digest"] != before and info["training"]["seed"] == 1
    assert (output / "notes.md").read_text() == "mine" and len(log(output)) == 2


def test_two_commands_do_not_share_a_directory(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    output.mkdir()
    with locked(output / ".lock", work="something else"):
        assert main(command("ar-tiny", data, output)) == 2
        printed = capsys.readouterr().err
        assert f"training in {output} is already under way: process {os.getpid()}" in printed
    assert main(command("ar-tiny", data, output, updates=1)) == 0


def test_weights_depend_on_the_seed_alone(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()

    def weights(output: str, *more: str) -> str:
        assert main(command("ar-tiny", data, tmp_path / output, *more, updates=1)) == 0
        return checkpoint.read_info(tmp_path / output)[1]["weights_digest"]

    first = weights("a")
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert weights("b") == first and weights("c", "--seed", "1") != first


def test_the_model_store_is_the_default(data: Path) -> None:
    settings = [*MINIATURE, *RECIPE]
    folder = train_preset(
        "ar-tiny", corpus="toy", data_dir=data, tokenizer_name="bytes", budget="tokens=1", settings=settings
    )
    assert model_store.find("ar-tiny") == folder == files.home() / "models" / "ar-tiny" / "step-00000001-final"


def test_ctrl_c_keeps_what_is_done_and_the_same_command_goes_on(data: Path, tmp_path: Path) -> None:
    updates, output = 40, tmp_path / "broken"
    arguments = command("ltm-tiny", data, output, updates=updates)
    running = process(arguments)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and running.poll() is None:
        if (output / "log.jsonl").exists() and (output / "log.jsonl").read_text().count("\n") >= 3:
            break
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, printed = running.communicate(timeout=60)
    assert running.returncode == 130
    step = json.loads((output / "log.jsonl").read_text().splitlines()[-1])["step"]
    assert 3 <= step < updates
    assert f"interrupted: step {step} is saved; issue the same command again to go on" in printed
    assert "Traceback" not in printed
    assert checkpoint.step_folder(output).name == f"step-{step:08d}"
    assert checkpoint.load(output).info["training"]["complete"] is False

    assert main(arguments) == 0
    assert main(command("ltm-tiny", data, tmp_path / "unbroken", updates=updates)) == 0
    assert log(output) == log(tmp_path / "unbroken") and len(log(output)) == updates
    digests = [checkpoint.read_info(path)[1]["weights_digest"] for path in (output, tmp_path / "unbroken")]
    assert digests[0] == digests[1]


def test_blocks_of_a_known_source_are_its_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command("ar-tiny", tmp_path, tmp_path / "run")
    arguments = [*arguments[:2], "topics:words=16,length=16", *arguments[5:]]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "next: ltm-eval --model ar-tiny --tasks audit --checkpoint" in printed.out
    assert "50,000 blocks of 16" in printed.err and "hold pieces of them" not in printed.err
    training = checkpoint.load(tmp_path / "run").info["training"]
    assert training["corpus"] == "topics:length=16,words=16" and not training["eos_between_documents"]
    assert recorded(training["data_source"]) == Topics(length=16, words=16)

    assert main([*arguments, "--set", "decoder.max_length=9", "--output", str(tmp_path / "short")]) == 0
    said = "blocks of 8 tokens (bytes) hold pieces of them"
    printed = capsys.readouterr()
    assert said in printed.err and "--tokenizer bytes --set decoder.max_length=17" in printed.err


def test_two_processes_see_the_batches_of_one(data: Path, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = command("ltm-tiny", data, tmp_path / "two")
    running = process(arguments, *torchrun)
    out, printed = running.communicate(timeout=120)
    assert running.returncode == 0, printed
    assert out.count("next: ") == 1 and printed.count("trained; weights in") == 1
    assert main(command("ltm-tiny", data, tmp_path / "one")) == 0
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert [line["tokens"] for line in two] == [line["tokens"] for line in one]
    for name in ("loss", "kl_per_token", "gradient_norm"):
        assert [line[name] for line in two] == pytest.approx([line[name] for line in one], rel=1e-5)
    weights = [checkpoint.load_weights(checkpoint.step_folder(tmp_path / run)) for run in ("one", "two")]
    for name, expected in weights[0].items():
        torch.testing.assert_close(weights[1][name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", registry.preset_names())
def test_advice_is_a_command_that_the_parser_takes(name: str) -> None:
    advice = training_advice(name)
    words = shlex.split(advice.splitlines()[1])
    options = parser().parse_args(words[1:])
    preset = registry.preset(name)[1]
    assert words[0] == "ltm-train" and options.name == name and options.budget == preset.training["budget"]
    assert configure(preset, budget=options.budget, seed=None, settings=[])[0] == preset.config
    assert "FLOPs" in advice and "--checkpoint" in advice


def test_advice_for_budgets_of_every_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    cls, preset = registry.preset("ar-tiny")
    for budget, said in (("flops=3e12", "costs 3e+12 FLOPs"), ("seconds=60", "--budget seconds=60\nor name weights")):
        changed = Preset(config=preset.config, tokenizer="bytes", training={"budget": budget})
        monkeypatch.setattr(cls, "presets", {"ar-tiny": changed})
        assert said in training_advice("ar-tiny")


def test_every_option_is_explained() -> None:
    text = parser().format_help()
    for option in ("--corpus", "--split", "--budget", "--data-dir", "--tokenizer", "--output", "--seed", "--device"):
        assert option in text


def test_options_of_reading_reach_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "mine").mkdir(parents=True)
    (tmp_path / "data" / "mine" / "train.csv").write_bytes(b'id,body\r\n1,"a\r\nb"\r\n')
    loaded = []

    def stop(corpus: str, split: str, **options: Any) -> None:
        loaded.append(corpora_load(corpus, split, **options))
        raise UserError("stopped here")

    corpora_load = corpora.load
    monkeypatch.setattr(corpora, "load", stop)
    arguments = ["ar-tiny", "--corpus", "mine", "--data-dir", str(tmp_path / "data"), "--output", str(tmp_path / "run")]
    assert main([*arguments, "--text-column", "body", "--newlines", "universal", "--max-bytes", "1k"]) == 2
    assert loaded[0].documents == ["a\nb"]
    assert loaded[0].source["text_column"] == "body" and loaded[0].source["newlines"] == "universal"
    assert main([*arguments, "--max-bytes", "9"]) == 2
    assert len(loaded) == 1
