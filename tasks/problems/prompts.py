"""Prompts for problems, cut to leave room for the answer, and control conditions.

A prompt that does not fit loses whole exemplars from its front; the question is kept. The records say what was lost.
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
"""Controls: another problem's question after the exemplars; exemplars with their solutions swapped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings for asking problems: the task's, unless the command line overrides them.

    Attributes:
        shots: exemplars before the question.
        style: style of their answers, one of `tasks.problems.dataset.STYLES`.
        samples: samples per problem.
        tokens: the most tokens that an answer may have.
        stop: strings that end an answer, besides EOS.
        controls: names from `CONTROLS`; each takes as many samples again.
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
        """The headline's rule: the last number of a rationale, or the first number if only the answer is asked for."""
        return "first" if self.style == "answer-only" else "flexible"

    def in_key(self) -> dict[str, Any]:
        """Return these settings as fields of a result's `scoring`."""
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
    """Return the settings of a run.

    Raises:
        UserError: a setting is out of range, or does not fit another.
    """
    metadata, generation = entry.settings["metadata"], entry.settings["generation_kwargs"]

    def chosen(option: str, default: Any) -> Any:
        value = getattr(options, option)
        return default if value is None else value

    controls = tuple(dict.fromkeys(c for c in (chosen("controls", None) or "").split(",") if c))
    how = Settings(
        shots=chosen("shots", metadata["shots"]),
        style=chosen("exemplars", metadata["style"]),
        samples=chosen("samples", entry.settings["repeats"]),
        temperature=float(chosen("temperature", generation["temperature"])),
        tokens=generation["max_gen_toks"],
        stop=tuple(generation["until"]),
        controls=controls,
    )
    check_style(how.style)
    check_samples(how.samples)
    for control in controls:
        if control not in CONTROLS:
            raise did_you_mean("control", control, CONTROLS)
    if "wrong-answers" in controls and how.shots < 2:
        raise UserError(
            f"--controls wrong-answers swaps the exemplars' solutions: expected --shots 2 or more, found {how.shots}"
        )
    return how


class Asked(NamedTuple):
    """The prompt of one problem.

    Attributes:
        tokens: tokens of the prompt.
        new_tokens: room for the answer, in tokens.
        shots: exemplars that were kept.
        cut: tokens cut off the front of a question that is too long for the block.
    """

    tokens: list[int]
    new_tokens: int
    shots: int
    cut: int


def ask(
    problems: Sequence[Problem],
    train: Sequence[Problem],
    how: Settings,
    tokenizer: Tokenizer,
    *,
    block_length: int,
    control: str | None = None,
) -> list[Asked]:
    """Make the prompt of each problem, under a control if one is given; the order of `problems` matters.

    Raises:
        UserError: train has too few problems, or there is no other question to ask.
    """
    from ltm.rng import seed_of

    questions = [asked(problem) for problem in problems]
    if control == "shuffled-question":
        if len(problems) < 2:
            raise UserError("--controls shuffled-question: expected at least 2 problems")
        # Rotate, so that no question stays in its place.
        move = 1 + seed_of("shuffled question") % (len(problems) - 1)
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
    """Cut a prompt to leave room for `tokens` new tokens, or for half a block of them if the block is short.

    A question longer than that takes room from the answer, and is itself cut if less than an eighth of a block would be
    left.
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
    """Make a generation request for every sample of every problem, problem by problem.

    A sample's noise depends only on its problem and its number, and is the same as for lm-eval's repeats.

    Args:
        greedy: take the most likely token, so that samples differ only by their latents.
        fixed_latents: use the first sample's latents for all samples of a problem, so that they differ only by tokens.
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
