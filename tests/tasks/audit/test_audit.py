"""The audit from the outside: verdicts in a result, evidence that can be computed again, and what is said."""

from __future__ import annotations

import importlib.util
import math
import re

import pytest

from leaderboard.verify import verify
from ltm.config import to_dict
from ltm.data import corpora
from ltm.harness import HarnessModel
from ltm.result import find_results, read_records, read_result
from ltm.untrusted.json_text import LARGEST
from tasks import cli
from tasks.audit import kind, report, twins
from tasks.audit.checks import enumeration, next_token
from tasks.audit.checks.check import CheckResult
from tasks.audit.checks.evidence import evidence
from tasks.audit.run import Audit, audit
from tests.support.harness_models import save_small
from tests.support.small_gpt2 import save_gpt2

TEXT = "".join(f"line {n} of a text that says {n * n} things\n" for n in range(40))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A home with small models, and twins and miniatures that hardly train."""
    monkeypatch.setenv("LTM_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(twins, "RECIPE", {**twins.RECIPE, "budget": "tokens=4k"})
    monkeypatch.setattr(corpora, "SIZES", {**corpora.SIZES, "train": 500})
    corpora.split_of.cache_clear()
    monkeypatch.setattr(enumeration, "UPDATES", 30)
    for name, few in (("FEW_DRAWS", 8), ("DRAWS", 32), ("FAST_STEPS", 40)):
        monkeypatch.setattr(enumeration, name, few)
    for name in ("ar-tiny", "ltm-tiny"):
        save_small(tmp_path, name)
    yield tmp_path
    corpora.split_of.cache_clear()


def run(models: str, *more: str) -> int:
    return cli.main(["--model", models, "--tasks", "audit", "--limit-blocks", "12", *more])


def test_a_cell_has_a_verdict_and_all_that_its_evidence_is_made_of(place, capsys):
    assert run("ar-tiny", "--proposal", "ar-tiny") == 0
    printed = capsys.readouterr()
    # A limited audit is never plainly "passed": not in the report, not in the summary.
    assert re.search(r"exact  passed \(short\)  10 of 10 checks  blind below \d\.\d{4} nats/token\n", printed.err)
    assert "passed (short)" in printed.out and not re.search(r"passed(?! \(short\))", printed.err + printed.out)
    assert re.search(r"\d+ seconds? in total, \d+ of them for training the twin: known_source \d", printed.err)
    assert all(len(line) <= 100 for line in printed.err.splitlines() if line.startswith("  "))
    (path,) = find_results(place / "results")
    result = read_result(path)
    assert (result.task["name"], result.model["name"], result.status) == ("ltm_audit", "ar-tiny", "partial")
    found = {m.name: m for m in result.metrics}
    verdict = found["audit_passed"]
    assert (verdict.value, verdict.unit, verdict.kind, verdict.direction, verdict.headline) == (
        1.0, "verdict", "exact", "higher", True
    )  # fmt: skip
    records = [r for r in read_records(path, result) if r["part"] == "text"]
    assert len(records) == 12 == result.scoring["blocks"] and result.scoring["block_length"] == 128
    again = evidence([r["exact"] for r in records], [r["reference"] for r in records])
    assert found["audit_log_e_value"].value == pytest.approx(again.log_e_value) and again.log_e_value < 0
    tokens = sum(r["tokens"] for r in records)
    for name, part in (("audit_claimed_nats_per_token", "exact"), ("audit_source_nats_per_token", "reference")):
        assert found[name].value == pytest.approx(-math.fsum(r[part] for r in records) / tokens)
    assert found["audit_source_nats_per_token"].likelihood is None
    assert found["audit_total_mass"].value == pytest.approx(1) and found["audit_proposal_mass"].value <= 1
    assert result.data["corpus"] == "topics" and result.data["source"]["kind"] == "known_source"
    assert path.with_suffix(".svg").exists() or "no figure" in printed.err
    assert run("ar-tiny", "--proposal", "ar-tiny") == 0
    assert "nothing to do" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs the transformers package")
def test_a_model_made_elsewhere_gets_the_checks_that_need_no_twin(place, capsys):
    directory = save_gpt2(place / "tiny-gpt2")
    assert run(f"pretrained:{directory}") == 0
    printed = capsys.readouterr()
    line = "exact passed (no twin) 6 of 6 checks 4 not made (known_source, total_mass, continuation_mass, blank_mass: "
    report = " ".join(printed.err.split())
    assert f"{line}no twin)" in report
    assert "no twin: no small model can be trained like a pretrained one" in report
    assert "no figure: without a twin" in report and "training the twin" not in report
    assert "passed (no twin)" in printed.out and not re.search(r"passed(?! \(no twin\))", printed.err + printed.out)
    (path,) = find_results(place / "results")
    result = read_result(path)
    # No texts of a source are scored, so a limit on them leaves nothing out.
    assert (result.status, result.scoring["twin"], result.scoring["blocks"]) == ("complete", "none", 0)
    assert result.data["corpus"] == "pydocs" and result.provenance["tokens_per_second"] is None
    assert {m.name for m in result.metrics} == {
        "audit_passed", "audit_next_token_mass", "audit_accounting", "audit_depends_on_weights",
        "audit_blank_text", "audit_proposal_mass", "audit_future_leak",
    }  # fmt: skip
    verdicts = {r["check"]: r["passed"] for r in read_records(path, result)}
    assert [name for name, passed in verdicts.items() if passed is None] == [
        "known_source", "total_mass", "continuation_mass", "blank_mass"
    ]  # fmt: skip
    entries, problems = verify(place / "results")
    assert len(entries) == 1 and problems == []
    assert not list((place / "models").glob("audit-*"))
    # Another proposal, the same checks.
    assert run(f"pretrained:{directory}", "--proposal", f"pretrained:{directory}") == 0
    assert "exact passed (no twin) 6 of 6 checks 4 not made" in " ".join(capsys.readouterr().err.split())


def test_each_likelihood_of_a_latent_model_has_a_verdict(place):
    from ltm.known_sources.topics import Topics

    source = Topics(length=16, words=6, topics=2, classes=2)
    # What was asked for elsewhere, such as a quick look, limits no check.
    model = HarnessModel(pretrained="ltm-tiny", device="cpu", headline_only=True, limit_blocks=1)
    found = audit(model, source, TEXT, texts=8)
    assert found.likelihoods == [
        "elbo",
        "importance_bound",
        "tube_upper_bound",
        "reused_noise_estimate",
        "predictive_bound",
        "prequential_bound",
    ]
    assert found.more_steps is not None and found.more_steps[1] == 256
    assert {c.name for c in found.checks if c.likelihood == "elbo"} == {
        "known_source", "known_source_256_steps", "total_mass", "blank_mass", "blank_text", "next_token_mass",
        "recomputed_elbo", "stated_error", "accounting", "depends_on_weights", "proposal_mass",
    }  # fmt: skip
    assert {c.name: c.passed for c in found.checks if c.likelihood is None} == {
        "decoder_mass": True,
    }
    assert {c.name for c in found.checks if c.likelihood == "predictive_bound"} == {
        "continuation_mass", "next_token_mass"
    }  # fmt: skip
    for name in ("elbo", "importance_bound", "predictive_bound"):
        assert found.passed(name), found.refutations(name)
    said = report.write(found)
    assert "elbo                   passed  12 of 12 checks  blind below" in said and "texts, this model" in said
    assert "not made" not in said
    assert found.claims.averaged == {"elbo"} and set(found.seconds) >= {"training", "known_source", "total_mass"}


def test_a_likelihood_fails_by_one_refutation(place, monkeypatch):
    from dataclasses import replace

    from ltm.known_sources.topics import Topics

    def inflated(*arguments, **options):
        return [replace(r, passed=False, detail="planted") for r in sound(*arguments, **options)]

    sound = next_token.next_token_mass
    monkeypatch.setattr(next_token, "next_token_mass", inflated)
    found = audit(HarnessModel(pretrained="ar-tiny", device="cpu"), Topics(length=16), TEXT, texts=4)
    assert found.claims.kinds == {"exact": "exact"}
    assert not found.passed("exact") and [c.name for c in found.refutations("exact")] == ["next_token_mass"]
    said = report.write(found)
    assert "exact  FAILED  9 of 10 checks  blind below" in said and "refuted by next_token_mass: planted" in said
    assert found.twin == "trained now"
    again = audit(HarnessModel(pretrained="ar-tiny", device="cpu"), Topics(length=16), TEXT, texts=4)
    assert again.twin == "found in the model store"
    assert re.search(r"seconds? in total; the twin was found in the model store: known_source", report.write(again))


def test_mistakes_are_said_before_anything_is_trained(place, capsys):
    assert run("ar-tiny", "--proposal", "ar-tinny") == 2
    assert "--proposal ar-tinny" in capsys.readouterr().err
    assert not list((place / "models").glob("audit-*"))


def test_a_configs_settings_reach_its_twin(place):
    loaded = HarnessModel(pretrained="ltm-tiny", device="cpu", settings=["posterior.lr=0.1"]).loaded
    from ltm.known_sources.topics import Topics

    twin = twins.twin(loaded, Topics(length=16))
    assert to_dict(twin.model.config)["posterior"]["lr"] == 0.1


def test_bars_span_from_the_lowest_to_the_highest():
    assert report.bars([0, 7, 3.5]) == "▁█▅" or report.bars([0, 7, 3.5]) == "▁█▄"
    assert report.bars([1, 1]) == "▁▁" and report.bars([0, math.inf]) == "▁█"


def test_a_sum_over_bounds_that_say_nothing_fits_in_a_result():
    """The upper bound of a q that is far off is 1e130 nats for a text, and its mass over texts as large."""
    check = CheckResult(name="blank_text", likelihood="upper", passed=True, value=-8e131, limit=4e130, detail="")
    made = Audit(
        subject="ltm-far", twin=None, source=None, entropy=None, claims=None, more_steps=None,
        whole_texts=("upper",), checks=(check,), seconds={},
    )  # fmt: skip
    (verdict, found) = kind.metrics(made, "elbo")
    (record,) = kind.checks(made)
    assert verdict.value == 1.0 and -LARGEST < found.value == record["value"] < -1e20 < 1e20 < record["limit"] < LARGEST
