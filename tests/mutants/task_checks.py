"""Checks of what is no likelihood: prompts, answers, rates of success, and draws from a peaked distribution."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import torch
from scipy.stats import chisquare

from baselines.diffusion import unmasking
from ltm import tokenizer
from ltm.api import Sampling
from ltm.rng import SequenceRng
from tasks.audit.checks.check import CheckResult
from tasks.problems import dataset, metrics, solver
from tasks.problems import prompts as asking
from tasks.problems.extraction import NUMBERS
from tasks.problems.pass_at_k import K
from tests.tasks.problems.test_extraction import TABLE

SHOTS, PROBLEMS, SAMPLES = 5, 8, 6
STEPS, POSITIONS = 4096, 2000
GROUPS = {0.9: 1, 1e-3: 20, 1e-4: 800}
"""A peaked distribution: one common token and a long tail, how many tokens have each probability."""


def result(name: str, faults: Sequence[str]) -> CheckResult:
    """Passed unless there are faults, whose number is the value."""
    detail = "; ".join(faults[:3]) or "nothing found"
    return CheckResult(name=name, likelihood=None, passed=not faults, value=len(faults), limit=0.0, detail=detail)


def prompts() -> list[CheckResult]:
    """Exemplars are problems of train, and never one that is asked, through both front doors."""
    settings = asking.Settings(
        shots=SHOTS, style="rationale", samples=K, temperature=1.0, tokens=8, stop=(), controls=()
    )
    with tempfile.TemporaryDirectory() as folder:
        train = [f"What is {i} and {i}?" for i in range(40)]
        # Most of what is asked is in train too, as text found twice often is.
        test = [f"What is {i} and seven?" for i in range(2)] + train[: PROBLEMS - 2]
        for split, questions in (("train", train), ("test", test)):
            lines = [json.dumps({"question": q, "answer": f"Add.\n#### {len(q) + i}"}) for i, q in enumerate(questions)]
            (path := Path(folder) / "gsm8k" / f"{split}.jsonl").parent.mkdir(exist_ok=True)
            path.write_text("\n".join(lines) + "\n")
        problems, learnt = dataset.find("gsm8k", "test", data_dir=Path(folder)).parsed()
        tokens = tokenizer.build("bytes")
        ours = asking.ask(problems, learnt, settings, tokens, block_length=4096)
        theirs = dataset.load("gsm8k", "test", shots=SHOTS, data_dir=folder)["test"]
    texts = [tokens.decode(one.tokens) for one in ours] + [dataset.prompt(one) for one in theirs]
    faults = []
    for text, asked in zip(texts, test * 2, strict=True):
        *shown, last = re.findall(r"^Question: (.*)$", text, re.M)
        faults += [f"{question!r} is asked, and an exemplar" for question in shown if question in test]
        faults += [f"{question!r} is not of train" for question in shown if question not in train]
        if last != asked or len(shown) != SHOTS:
            faults.append(f"{asked!r} is asked as {last!r} after {len(shown)} exemplars")
    return [result("prompts", faults)]


def answers() -> list[CheckResult]:
    """A table of texts that answer, nearly answer or only seem to, as the tasks read them; gold 3 and each its own."""
    faults = []
    for text, expected in TABLE.items():
        for gold in {"3", *(said for said in expected if said)}:
            found = solver.Answered(golds=[gold], texts=[[text]])
            for rule, said in zip(NUMBERS, expected, strict=True):
                if found.right(rule) != [int(said == gold)]:
                    faults.append(f"{rule}: {text!r} is taken for {gold}")
    return [result("answers", faults)]


def rates() -> list[CheckResult]:
    """pass@k and maj@k of a few problems against enumeration of every choice of k samples."""
    texts = [[*["4"] * c, *["5", "6", "no"][: SAMPLES - c], *["5"] * (SAMPLES - c - 3)] for c in range(SAMPLES + 1)]
    found = metrics._rates(solver.Answered(golds=["4"] * len(texts), texts=texts), "flexible")
    faults = []
    for c, own in enumerate(texts):
        right = [text == "4" for text in own]
        for k in (1, K):
            choices = [any(choice) for choice in combinations(right, k)]
            if abs(found[f"pass@{k}"][c] - sum(choices) / len(choices)) > 1e-12:
                faults.append(f"pass@{k} of {c} of {SAMPLES} right is {found[f'pass@{k}'][c]:.4g}")
        votes = Counter(text for text in own[:K] if text != "no")
        tied = [text for text in votes if votes[text] == max(votes.values())]
        if abs(found[f"maj@{K}"][c] - ("4" in tied) / len(tied)) > 1e-12:
            faults.append(f"maj@{K} of {votes['4']} of {K} right is {found[f'maj@{K}'][c]:.4g}")
    return [result("rates", faults)]


def peaked_draws() -> list[CheckResult]:
    """4,096 steps of unmasking at a peaked distribution, by chi-square: rare tokens need rare numbers to be drawn."""
    log_p = torch.cat([torch.full((n,), p, dtype=torch.float64).log() for p, n in GROUPS.items()])
    mask_id = len(log_p) + 1
    drawn, _ = unmasking.ancestral(
        lambda canvas_BL, rate_B, wanted_BL: log_p.expand(int(wanted_BL.sum()), -1),
        torch.full((1, POSITIONS), mask_id),
        mask_id,
        [1 - step / STEPS for step in range(STEPS + 1)],
        SequenceRng(0, [0]).stream("x"),
        block_length=POSITIONS,
        sampling=Sampling(),
        cached=True,
    )
    counts = torch.bincount(drawn.flatten(), minlength=len(log_p))
    found = torch.stack([part.sum() for part in counts.split(list(GROUPS.values()))])
    expected = torch.tensor([p * n * POSITIONS for p, n in GROUPS.items()], dtype=torch.float64)
    return [by_chance("peaked_draws", found, expected)]


def by_chance(name: str, found: torch.Tensor, law: torch.Tensor, least: float = 1e-4) -> CheckResult:
    """Chi-square of counts against a law."""
    p = float(chisquare(found.numpy(), (law / law.sum() * found.sum()).numpy()).pvalue)
    return CheckResult(name=name, likelihood=None, passed=p > least, value=p, limit=least, detail=f"p-value {p:.2g}")


CHECKS: dict[str, Callable[[], list[CheckResult]]] = {
    "prompts": prompts,
    "answers": answers,
    "rates": rates,
    "peaked_draws": peaked_draws,
}
