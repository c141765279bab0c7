"""How problems are asked of a model: the prompts, what of them fits beside the answer, and controls.

A prompt that does not fit loses whole exemplars from its front; the question is kept. What was lost is in the records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ltm.errors import UserError, did_you_mean
from tasks.problems.dataset import EXEMPLAR_SEEDS, Problem, asked, check_style, exemplar, exemplars
from tasks.problems.pass_at_k import check_samples

if TYPE_CHECKING:
    from ltm.evaluation.rows import Prompt
    from ltm.tokenizer import Tokenizer
    from tasks.catalog import TaskEntry
    from tasks.options import EvalOptions

CONTROLS = ("shuffled-question", "wrong-answers")
"""The exemplars before another problem's question; the question after exemplars that have each other's solutions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How problems are asked: what the task says, where the command line does not say otherwise.

    Attributes:
        shots: exemplars before the question.
        style: how they answer; see `tasks.problems.dataset.STYLES`.
        samples: of each problem.
        tokens: the most that an answer may have.
        stop: strings that end an answer, besides EOS.
        controls: of `CONTROLS`, each as many samples again.
    """

    shots: int
    style: str
    samples: int
    temperature: float
    tokens: int
    stop: tuple[str, ...]
    controls: tuple[str, ...]

    @property
    def rule(self) -> str:
        """The rule of the headline: the last number of a rationale; the first number where only that is asked for."""
        return "first" if self.style == "answer-only" else "flexible"

    def in_key(self) -> dict[str, Any]:
        """The fields of a result's `scoring` that say all this."""
        return {
            "shots": self.shots,
            "style": self.style,
            "temperature": self.temperature,
            "max_new_tokens": self.tokens,
            "stop": list(self.stop),
            "rule": self.rule,
            "exemplar_seeds": list(EXEMPLAR_SEEDS),
            **({"controls": list(self.controls)} if self.controls else {}),
        }


def settings(entry: TaskEntry, options: EvalOptions) -> Settings:
    """The settings of a run.

    Raises:
        UserError: one does not fit, or not with another.
    """
    metadata, generation = entry.settings["metadata"], entry.settings["generation_kwargs"]

    def chosen(option: str, default: Any) -> Any:
        value = getattr(options, option)
        return default if value is None else value

    controls = tuple(dict.fromkeys(c for c in (chosen("controls", None) or "").split(",") if c))
    found = Settings(
        shots=chosen("shots", metadata["shots"]),
        style=chosen("exemplars", metadata["style"]),
        samples=chosen("samples", entry.settings["repeats"]),
        temperature=float(chosen("temperature", generation["temperature"])),
        tokens=generation["max_gen_toks"],
        stop=tuple(generation["until"]),
        controls=controls,
    )
    check_style(found.style)
    check_samples(found.samples)
    for control in controls:
        if control not in CONTROLS:
            raise did_you_mean("control", control, CONTROLS)
    if "wrong-answers" in controls and found.shots < 2:
        raise UserError(
            f"--controls wrong-answers swaps the exemplars' solutions: expected --shots 2 or more, found {found.shots}"
        )
    return found


class Asked(NamedTuple):
    """One problem as it is put to a model.

    Attributes:
        tokens: of the prompt.
        new_tokens: room for the answer.
        shots: exemplars left.
        cut: tokens that the question lost at its front, which only one longer than the whole window does.
    """

    tokens: list[int]
    new_tokens: int
    shots: int
    cut: int


def ask(
    found: Sequence[Problem],
    train: Sequence[Problem],
    how: Settings,
    tokenizer: Tokenizer,
    *,
    block_length: int,
    control: str | None = None,
) -> list[Asked]:
    """Each problem's prompt, under a control or none; all of `found` is asked, so its order is part of the result.

    Raises:
        UserError: train has too few problems, or there is no other question to ask.
    """
    from ltm.rng import seed_of

    questions = [asked(problem) for problem in found]
    if control == "shuffled-question":
        if len(found) < 2:
            raise UserError("--controls shuffled-question: expected at least 2 problems")
        # Round by a number that no problem is left in place by.
        move = 1 + seed_of("shuffled question") % (len(found) - 1)
        questions = questions[move:] + questions[:move]
    prompts = []
    for number, question in enumerate(questions):
        shots = exemplars(train, number, how.shots)
        if control == "wrong-answers":
            shots = [Problem(a.question, b.steps, b.answer) for a, b in zip(shots, [*shots[1:], shots[0]], strict=True)]
        texts = [exemplar(shot, how.style) for shot in shots]
        prompts.append(fit(tokenizer.encode, texts, question, block_length=block_length, tokens=how.tokens))
    return prompts


def fit(encode: Callable[[str], Any], shots: Sequence[str], question: str, *, block_length: int, tokens: int) -> Asked:
    """As much of a prompt as leaves room for `tokens` new ones, or in a short block for half a block of them.

    A question longer than that takes room from the answer, and is itself cut where less than an eighth of a block
    would be left.
    """
    room = max(block_length - tokens, block_length // 2)
    kept = list(shots)
    ids = encode("".join(kept) + question)
    while kept and len(ids) > room:
        kept.pop(0)
        ids = encode("".join(kept) + question)
    cut = max(0, len(ids) - (block_length - min(tokens, max(1, block_length // 8))))
    ids = [int(token) for token in ids[cut:]]
    return Asked(ids, min(tokens, block_length - len(ids)), len(kept), cut)


def prompts(
    asked: Sequence[Asked],
    how: Settings,
    *,
    samples: int,
    eos_id: int,
    name: str = "sample",
    greedy: bool = False,
    fixed_latents: bool = False,
) -> list[Prompt]:
    """Every sample of every problem as a generation, problem by problem, sample by sample.

    The noise of a sample depends on its problem and its number alone; it is that of lm-eval's repeats.

    Args:
        greedy: take the likeliest token, so that samples differ by their latents alone.
        fixed_latents: all samples of a problem under the latents of the first, so that they differ by tokens alone.
    """
    from ltm.api import Sampling
    from ltm.evaluation.rows import Prompt
    from ltm.rng import seed_of

    sampling = Sampling(temperature=0.0 if greedy else how.temperature, stop_ids=(eos_id,))
    return [
        Prompt(
            record=f"{name} {seed_of(tuple(problem.tokens), problem.new_tokens, sampling)} problem {i} sample {j}",
            tokens=problem.tokens,
            new_tokens=problem.new_tokens,
            sampling=sampling,
            index=seed_of(i, 0, j),
            latents=seed_of(i, 0, 0) if fixed_latents else None,
        )
        for i, problem in enumerate(asked)
        for j in range(samples)
    ]
