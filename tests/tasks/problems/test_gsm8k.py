"""Problems with a number for an answer: prompts, what fits, and a solver of known skill through both front doors."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from leaderboard import cli as board_cli
from ltm import registry, tokenizer
from ltm.api import Generations
from ltm.data.derived import held_out
from ltm.data.split import Split
from ltm.errors import UserError
from ltm.harness import HarnessModel
from ltm.result import find_results, read_records, read_result
from ltm.rng import SequenceRng
from tasks import catalog, cli
from tasks.options import EvalOptions
from tasks.problems import chance, dataset, metrics
from tasks.problems import prompts as asking
from tasks.problems.dataset import EXEMPLAR_SEEDS, STYLES, Problem, asked, exemplar, exemplars, find, problems
from tasks.problems.extraction import gold_answer
from tasks.problems.kind import Problems, trained_on
from tasks.problems.metrics import ABOVE_CHANCE
from tasks.problems.pass_at_k import K
from tests.support.harness_models import Bigram, BigramConfig, loaded, save_small

TRAIN, TEST = 40, 12


def row(i: int, what: str) -> dict[str, str]:
    answer = f"{1000 + 7 * i:,}"
    steps = f"It is 1000 + {7 * i} = <<1000+{7 * i}={answer}>>{answer}.\n#### {answer}"
    return {"question": f"{what} {i}: what are 1000 and seven times {i}?", "answer": steps}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Problems in a directory of corpora, two small models, and the current directory elsewhere."""
    for name in ("ltm-tiny", "ar-tiny"):
        save_small(tmp_path / "home", name)
    (tmp_path / "data" / "gsm8k").mkdir(parents=True)
    for split, count in (("train", TRAIN), ("test", TEST)):
        lines = "".join(json.dumps(row(i, split)) + "\n" for i in range(count))
        (tmp_path / "data" / "gsm8k" / f"{split}.jsonl").write_text(lines)
    monkeypatch.setenv("LTM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("LTM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def split_of(*documents: str) -> Split:
    return Split.of("toy", "train", documents, unit="document", source={"kind": "test"})


PROBLEMS = problems(split_of(*("\n".join(row(i, "toy").values()) for i in range(30))))


def test_documents_are_problems_with_or_without_their_headings():
    plain, headed = problems(
        split_of("How many?\n2+3=5\nSo 5.\n#### 5", "Question: How many?\nAnswer: 2+3=5\nSo 5.\n#### 5\n\n")
    )
    assert plain == headed == Problem("How many?", "2+3=5\nSo 5.", "5")
    assert problems(split_of("How many?\n#### 1,200"))[0] == Problem("How many?", "", "1,200")
    for bad in ("How many?", "How many?\nfive", "How many?\n####", "\n#### 5"):
        with pytest.raises(UserError, match=r"toy/train, problem 2: expected a question on a line of its own"):
            problems(split_of("How many?\n#### 5", bad))


def test_prompts_end_without_a_space_and_styles_differ_in_the_exemplars_alone():
    problem = PROBLEMS[3]
    assert asked(problem).endswith("\nAnswer:") and asked(problem).startswith("Question: toy 3")
    shown = {style: exemplar(problem, style) for style in STYLES}
    assert shown["rationale"] == f"{asked(problem)} It is 1000 + 21 = 1,021.\n#### 1,021\n\n"
    assert shown["calculations"] == f"{asked(problem)} It is 1000 + 21 = <<1000+21=1,021>>1,021.\n#### 1,021\n\n"
    assert shown["answer-only"] == f"{asked(problem)} 1,021\n\n"
    with pytest.raises(UserError, match="did you mean rationale"):
        dataset.check_style("rational")


def test_exemplars_are_fixed_by_the_list_of_seeds():
    sets = {tuple(exemplars(PROBLEMS, number, 5)) for number in range(40)}
    assert len(sets) == len(EXEMPLAR_SEEDS)
    for number in range(5):
        ten, five = exemplars(PROBLEMS, number, 10), exemplars(PROBLEMS, number, 5)
        assert len(set(ten)) == 10 and ten[5:] == five and exemplars(PROBLEMS, number + 5, 5) == five
    assert sorted(exemplars(PROBLEMS, 0, 30)) == sorted(PROBLEMS)
    with pytest.raises(UserError, match="31 shots: train has 30"):
        exemplars(PROBLEMS, 0, 31)


def test_no_question_is_among_its_exemplars(place):
    train = place / "data" / "gsm8k" / "train.jsonl"
    train.write_text(train.read_text() + json.dumps(row(0, "test")) + "\n")
    found, rest = find("gsm8k", "test", data_dir=None).parsed()
    assert len(found) == TEST and len(rest) == TRAIN
    assert not {problem.question for problem in found} & {problem.question for problem in rest}


def test_problems_held_out_of_train(place, monkeypatch):
    with pytest.raises(UserError, match=r"the last 1000 documents of train, which has 40; expected at least 2000"):
        find("gsm8k", "train_holdout", data_dir=None)
    monkeypatch.setattr(held_out, "DOCUMENTS", 10)
    found = find("gsm8k", "train_holdout", data_dir=None)
    assert [problem.question[:8] for problem in problems(found.asked)] == [f"train {i}" for i in range(30, 40)]
    assert len(found.train.documents) == 30 and found.asked.fingerprint != found.train.fingerprint
    with pytest.raises(UserError, match="train cannot be asked; use train_holdout"):
        find("gsm8k", "train", data_dir=None)


def test_without_a_train_split_or_the_split_itself(place):
    (place / "data" / "gsm8k" / "test.jsonl").unlink()
    with pytest.raises(UserError, match=r"gsm8k/test is not here.*gsm8k_train_holdout asks its last"):
        find("gsm8k", "test", data_dir=None)
    (place / "data" / "gsm8k" / "train.jsonl").unlink()
    with pytest.raises(UserError, match=r"gsm8k needs its train split, for exemplars and for the chance rows"):
        find("gsm8k", "test", data_dir=None)


def test_what_fits_keeps_the_question_and_whole_exemplars_next_to_it():
    encode, decode = (tokens := tokenizer.build("bytes")).encode, tokens.decode
    rng = random.Random(0)
    for _ in range(300):
        shots = [f"<{'s' * rng.randrange(30)}>" for _ in range(rng.randrange(6))]
        question, block, new = "q" * rng.randrange(1, 120), rng.randrange(8, 150), rng.randrange(1, 80)
        found = asking.fit(encode, shots, question, block_length=block, tokens=new)
        text, room = decode(found.tokens), max(block - new, block // 2)
        assert len(found.tokens) + found.new_tokens <= block and 1 <= found.new_tokens <= new
        if found.cut:
            assert (
                text == question[found.cut :] and found.shots == 0 and found.new_tokens == min(new, max(1, block // 8))
            )
        else:
            assert text == "".join(shots[len(shots) - found.shots :]) + question
        if found.shots < len(shots):
            assert len("".join(shots[len(shots) - found.shots - 1 :]) + question) > room
        if len(question) <= room:
            assert found.new_tokens >= min(new, block - room)
    assert asking.fit(encode, ["abc"], "q", block_length=100, tokens=50) == (list(b"abcq"), 50, 1, 0)


def how(**changes) -> asking.Settings:
    settings = {"shots": 3, "style": "answer-only", "samples": 5, "temperature": 1.0, "tokens": 16}
    return asking.Settings(**{**settings, "stop": ("Question:", "\n\n"), "controls": (), **changes})


def test_controls():
    tokens = tokenizer.build("bytes")
    found, train = PROBLEMS[:10], PROBLEMS[10:]

    def texts(control):
        asked = asking.ask(found, train, how(), tokens, block_length=900, control=control)
        return [tokens.decode(problem.tokens) for problem in asked]

    plain, shuffled, wrong = (texts(control) for control in (None, *asking.CONTROLS))
    for i, problem in enumerate(found):
        own = asked(problem)
        before, question = plain[i].removesuffix(own), shuffled[i].removeprefix(plain[i].removesuffix(own))
        assert plain[i] == before + own and question != own and question in map(asked, found)
        assert wrong[i].endswith("\n\n" + own)
        shots = exemplars(train, i, 3)
        for shot, other in zip(shots, [*shots[1:], shots[0]], strict=True):
            assert f"{asked(shot)} {other.answer}\n\n" in wrong[i] and shot.answer != other.answer
    assert sorted(text.rpartition("Question")[2] for text in shuffled) == sorted(
        text.rpartition("Question")[2] for text in plain
    )


class Guesser(Bigram):
    """Knows the answer with probability `skill` a sample, and says so in many words; else it is off by one."""

    family = "guesser"
    golds: dict[str, int] = {}  # noqa: RUF012
    skill = 0.4

    def generate(self, prompts, *, max_new_tokens, sampling, rng):
        """A draw a prompt."""
        drawn = SequenceRng.of(rng, len(prompts)).stream("tokens").uniform()
        outputs = []
        for prompt, u in zip(prompts, drawn.tolist(), strict=True):
            question = bytes(prompt).decode().rpartition("Question: ")[2].removesuffix("\nAnswer:")
            right = self.golds.get(question, 0) + (0 if u < self.skill else 1)
            text = f" first 12,\nthen {right:,}.00\n#### {right if u * 100 % 2 < 1 else 'none'}\n\n### 5"
            outputs.append(list(text.encode())[:max_new_tokens])
        return Generations(tokens=outputs, network_evaluations=[len(new) for new in outputs])


def guesser(skill: float = 0.4, block: int = 2000) -> HarnessModel:
    model = Guesser(BigramConfig(block=block))
    model.skill = skill
    model.golds = {
        problem["question"]: 1000 + 7 * i
        for split, count in (("train", TRAIN), ("test", TEST))
        for i in range(count)
        for problem in [row(i, split)]
    }
    return HarnessModel(pretrained=loaded(model, f"guesser-{skill}"))


def measured(model, task="ltm_gsm8k", **options):
    problems = Problems(catalog.read(task), EvalOptions(**options))
    return problems.measure(model, problems.identity(model))


def values(measurement) -> dict[str, float]:
    assert len({metric.name for metric in measurement.metrics}) == len(measurement.metrics)
    assert [metric.name for metric in measurement.metrics if metric.headline] == [f"pass@{K}"]
    return {metric.name: metric.value for metric in measurement.metrics}


@pytest.mark.parametrize("task", ["ltm_gsm8k", "ltm_gsm8k_5shot"])
def test_lm_eval_gives_the_same_numbers(place, task):
    mine = values(measured(guesser(), task))
    manager = TaskManager(include_path=str(catalog.DIRECTORY), include_defaults=False)
    theirs = evaluate(guesser(), manager.load([task]), bootstrap_iters=0)["results"][task]
    for rule in ("flexible", "strict", "first", "legacy_substring"):
        for name in ("pass@1", f"pass@{K}", f"maj@{K}"):
            if (own := f"{name}{'' if rule == 'flexible' else f'_{rule}'}") in mine:
                assert theirs[f"{name},{rule}"] == pytest.approx(mine[own], abs=1e-12), own
    assert 0.2 < mine["pass@1"] < 0.6 < mine[f"pass@{K}"] and mine["pass@1_strict"] < mine["pass@1"]
    assert mine["pass@1_first"] == 0


def test_rates_are_those_of_the_records(place):
    found = measured(guesser(), "ltm_gsm8k", samples=8)
    mine = values(found)
    for rule, ending in (("flexible", ""), ("strict", "_strict"), ("substring", "_legacy_substring")):
        right = [sum(said == r["gold"] for said in r["answers"][rule]) for r in found.records]
        assert mine[f"pass@1{ending}"] == pytest.approx(sum(right) / 8 / TEST)
    assert all(len(r["texts"]) == 8 and r["shots"] == 0 and "\n\n" not in r["texts"][0] for r in found.records)
    assert found.complete and found.tokens == sum(len(t) + len("\n\n### 5") for r in found.records for t in r["texts"])
    assert mine["unanswered"] == 0 and mine["distinct_answers"] <= 2


@pytest.mark.parametrize(("skill", "verdict"), [(1.0, "above chance"), (0.0, "not above chance")])
def test_above_chance_is_said_when_the_paired_interval_says_so(place, skill, verdict):
    found = measured(guesser(skill))
    assert found.notes[0].startswith(f"{verdict}: pass@5 {skill:.1%} (flexible), the best blind guess, ")
    mine = values(found)
    best = max(value for name, value in mine.items() if name.startswith("chance_") and name.endswith("pass@5"))
    assert mine[ABOVE_CHANCE] == pytest.approx(mine["pass@5"] - best)


def test_where_nothing_is_solved_no_interval_is_a_point():
    found = {m.name: m.ci95 for m in metrics._measured({f"pass@{K}": [0.0] * 1000, ABOVE_CHANCE: [0.0] * 1000})}
    most = 1 - 0.025 ** (1 / 1000)
    assert (found[f"pass@{K}"].low, found[f"pass@{K}"].high) == pytest.approx((0, most))
    assert (found[ABOVE_CHANCE].low, found[ABOVE_CHANCE].high) == pytest.approx((-most, most))


def test_chance_rows_stand_beside_with_all_their_names(place):
    found = measured(guesser())
    names = set(registry.names(registry.CHANCE))
    assert set(found.records[0]["chance"]) == names == set(chance.chance_names())
    for name in names:
        rate = sum(record["chance"][name]["flexible"] for record in found.records) / TEST
        assert values(found)[f"chance_{name}_pass@5"] == pytest.approx(rate)


def test_controls_take_the_skill_away(place):
    mine = values(measured(guesser(1.0), "ltm_gsm8k_5shot", controls="shuffled-question,wrong-answers"))
    assert mine["pass@5"] == 1.0 and mine["control_wrong-answers_pass@5"] == 1.0
    # The answer to another question is not this one's.
    assert mine["control_shuffled-question_pass@5"] == 0.0


def test_what_does_not_fit_is_counted_and_said(place):
    model = guesser(1.0, block=300)
    found = measured(model, "ltm_gsm8k_10shot")
    mine = values(found)
    assert 0 < mine["exemplars_dropped"] <= 10 and mine["answer_shortened"] == 1 and mine["question_cut"] == 0
    assert all(r["prompt_tokens"] + r["new_tokens"] <= 300 for r in found.records)
    assert mine["exemplars_dropped"] == sum(10 - r["shots"] for r in found.records) / TEST
    assert any("12 of 12 prompts lost exemplars" in note for note in found.notes)
    assert mine["pass@5"] == 1.0  # the question was kept
    cut = measured(guesser(1.0, block=40))
    assert values(cut)["question_cut"] == 1 and any("cut at its front" in note for note in cut.notes)


def test_diversity_of_a_latent_model_by_its_sources(place):
    assert cli.main(["--model", "ltm-tiny,ar-tiny", "--tasks", "gsm8k", "--limit-problems", "3"]) == 0
    results = {
        result.model["name"]: (path, result)
        for path, result in ((p, read_result(p)) for p in find_results(place / "results"))
    }
    path, latent = results["ltm-tiny"]
    by_source = ["distinct_answers_by_latents_alone", "distinct_answers_by_tokens_alone"]
    assert latent.status == "partial" and latent.scoring["blocks"] == 3
    assert all(any(m.name == name and 0 <= m.value <= K for m in latent.metrics) for name in by_source)
    assert not any(m.name in by_source for m in results["ar-tiny"][1].metrics)
    record = read_records(path, latent)[0]
    # The first sample has the same latents and the same tokens' noise as with latents fixed to it; later ones do not.
    assert record["diversity"]["tokens"][0] == record["texts"][0]
    assert record["diversity"]["tokens"][1:] != record["texts"][1:]


def test_the_board_and_a_second_run(place, capsys, monkeypatch):
    arguments = ["--model", "ar-tiny", "--tasks", "gsm8k", "--limit-problems", "12"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr()
    assert "chance:" in out.out and "not above chance" in out.err
    assert cli.main([*arguments, "--show-samples", "2"]) == 0
    again = capsys.readouterr()
    first, *_, last = read_records(path := find_results(place / "results")[0], read_result(path))
    assert "nothing to do" in again.err
    assert f"sample 1 of 12:\n[{first['question']}]" in again.out and f"(right: {first['gold']})" in again.out
    assert "sample 2 of 12" in again.out and "sample 3 of 12" not in again.out and last["question"] not in again.out
    assert cli.main([*arguments, "--temperature", "0.5"]) == 0
    assert len(find_results(place / "results")) == 2
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["ltm-leaderboard", "build", "--out", "board.md"])
    assert board_cli.main() == 0
    shown, written = capsys.readouterr().out, (place / "board.md").read_text()
    assert shown.count("chance: constants") == 1 and written.count("| chance: constants |") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--samples", "3"], "pass@5 needs at least 5 samples per problem, found 3"),
        (["--shots", "41"], "--shots 41: gsm8k/train has 40 problems"),
        (["--shots", "-1"], "--shots=-1: expected a whole number of at least 0"),
        (["--exemplars", "steps"], "unknown style of exemplars 'steps'"),
        (["--controls", "shuffled"], "did you mean shuffled-question"),
        (["--controls", "wrong-answers"], "expected --shots 2 or more, found 0"),
        (["--temperature", "-1"], "--temperature: expected a number of at least 0"),
        (["--limit-problems", "0"], "--limit-problems"),
    ],
)
def test_mistakes_are_said(place, capsys, arguments, words):
    assert cli.main(["--model", "ar-tiny", "--tasks", "gsm8k", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_data_are_looked_for_before_the_harness_is_imported(place):
    code = (
        "import sys, tasks.cli as c\n"
        "code = c.main(['--model', 'ar-tiny', '--tasks', 'gsm8k', '--samples', '3'])\n"
        "print(sorted({'lm_eval', 'datasets'} & set(sys.modules)), code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] 2"


def test_golds_are_numbers():
    assert all(gold_answer(problem.answer) == str(1000 + 7 * i) for i, problem in enumerate(PROBLEMS))


def test_chance_on_real_problems_held_out_of_train():
    if not os.environ.get("LTM_DATA_DIR"):
        pytest.skip("set LTM_DATA_DIR to a directory that holds gsm8k/train.jsonl.xz")
    found, train = find("gsm8k", "train_holdout", data_dir=None).parsed()
    rows = chance.chance_rows(found, train, seed=0)
    # Published for the test split: pass@5 in percent, exact; the legacy rule.
    published = {"constants": (12.8, 16.8), "prior": (4.9, 18.5), "copied": (6.3, 10.3), "two-numbers": (None, 28.5)}
    for name, expected in published.items():
        for rule, rate in zip(("flexible", "substring"), expected, strict=True):
            if rate is not None:
                assert 100 * sum(rows[name][rule]) / len(found) == pytest.approx(rate, abs=4.5), (name, rule)


@pytest.mark.parametrize(
    ("corpus", "split", "parts", "seen"),
    [
        ("gsm8k", "train", None, True),
        ("gsm8k", "train_rest", None, False),
        ("gsm8k", "train_holdout", None, True),
        ("novels", "train", None, False),
        ("mixed", "train", [("novels", "train"), ("gsm8k", "train")], True),
        ("mixed", "train", [("novels", "train"), ("gsm8k", "train_rest")], False),
    ],
)
def test_problems_that_were_trained_on_are_recognised(place, monkeypatch, corpus, split, parts, seen):
    monkeypatch.setattr(held_out, "DOCUMENTS", 10)
    found = find("gsm8k", "train_holdout", data_dir=None).asked
    source = {"parts": [{"corpus": name, "split": part} for name, part in parts]} if parts else {"kind": "local"}
    training = {"corpus": corpus, "split": split, "data_source": source}
    assert trained_on(found, training) is seen
    assert not trained_on(found, None)
    assert not trained_on(find("gsm8k", "test", data_dir=None).asked, training)


def test_a_model_that_was_trained_on_them_is_not_asked(place, monkeypatch):
    monkeypatch.setattr(held_out, "DOCUMENTS", 10)
    problem_task = Problems(catalog.read("ltm_gsm8k_train_holdout"), EvalOptions(data_dir=None))
    model = HarnessModel(loaded(Bigram(BigramConfig(block=64))))
    model.loaded.info["training"] = {"corpus": "gsm8k", "split": "train", "data_source": {}}
    with pytest.raises(UserError, match=r"trained on gsm8k/train_holdout.*gsm8k/train_rest, which leaves them out"):
        problem_task.measure(model, problem_task.identity(model))
