"""Requests of lm-eval, by task, and its generation requests as prompts in the tokens of one model."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltm.api import Sampling
from ltm.config import whole_number
from ltm.errors import UserError, did_you_mean
from ltm.evaluation.rows import Prompt, digest_of
from ltm.rng import seed_of

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

KNOWN = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "reinfer_every")
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names that lm-eval has for the number of new tokens."""
NEUTRAL: Mapping[str, float] = {
    **dict.fromkeys(("num_beams", "num_return_sequences", "n", "best_of", "repetition_penalty", "typical_p"), 1),
    **dict.fromkeys(("min_p", "presence_penalty", "frequency_penalty", "no_repeat_ngram_size"), 0),
}
"""Options of other backends, each with the value that asks for what is done anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """The options of one generation: at most `tokens` new tokens, and the strings `until` that end an answer."""

    tokens: int
    sampling: Sampling
    until: tuple[str, ...]

    def cut(self, text: str) -> str:
        """The text up to the first stop string in it."""
        return cut(text, self.until)


def cut(text: str, stops: Sequence[str]) -> str:
    """Return the text up to the first of the stop strings in it."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def parse(options: Mapping[str, Any], *, eos_id: int) -> GenerationRequest:
    """Parse the options of a request, and leave them unchanged, since its repeats share them.

    `do_sample=false`, or neither it nor a temperature above 0, is greedy; `do_sample=true` alone is temperature 1.

    Raises:
        UserError: an option that is unknown, not offered, or out of range: ignoring it would answer another question.
    """
    wish = dict(options)
    for name, neutral in NEUTRAL.items():
        if (value := wish.pop(name, None)) is not None and value != neutral:
            raise UserError(f"generation option {name}={value} is not offered; leave it out, or say {name}={neutral}")
    if wish.pop("seed", None) is not None:
        raise UserError("generation option seed: noise comes from the model's seed; say --model_args seed=N")
    for name in wish:
        if name not in (*KNOWN, *LENGTHS):
            raise did_you_mean("generation option", name, (*KNOWN, *LENGTHS))
    do_sample = wish.get("do_sample")
    if do_sample is not None and do_sample not in (True, False):
        raise UserError(f"generation option do_sample={do_sample}: expected true or false")
    temperature = _number(wish, "temperature")
    if do_sample is None:
        do_sample = bool(temperature)
    if do_sample and temperature is None:
        temperature = 1.0
    top_k, top_p = _number(wish, "top_k"), _number(wish, "top_p")
    if top_k is not None and top_k != int(top_k):
        raise UserError(f"generation option top_k={top_k}: expected a whole number")
    every = wish.get("reinfer_every")
    try:
        sampling = Sampling(
            temperature=temperature or 0.0 if do_sample else 0.0,
            # Other libraries write 0 or -1 for all.
            top_k=None if top_k in (None, 0, -1) else int(top_k or 0),
            top_p=None if top_p == 1 else top_p,
            stop_ids=(eos_id,),
            reinfer_every=whole_number("reinfer_every", every, least=1) if every else None,
        )
    except ValueError as error:
        raise UserError(f"generation options {dict(options)}: {error}") from error
    return GenerationRequest(tokens=_tokens(wish), sampling=sampling, until=_stops(wish.get("until")))


def _number(options: Mapping[str, Any], name: str) -> float | None:
    value = options.get(name)
    try:
        number = None if value is None else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if number is not None and not math.isfinite(number):
        raise UserError(f"generation option {name}={value}: expected a number")
    return number


def _tokens(options: Mapping[str, Any]) -> int:
    """The number of new tokens; lm-eval's default is 256."""
    given = {name: whole_number(name, options[name], least=1) for name in LENGTHS if options.get(name) is not None}
    if len(set(given.values())) > 1:
        both = " and ".join(f"{name}={tokens}" for name, tokens in given.items())
        raise UserError(f"generation options {both} disagree: use the name that the task has, {next(iter(given))}")
    return next(iter(given.values()), 256)


def _stops(until: Any) -> tuple[str, ...]:
    stops = [until] if until is None or isinstance(until, str) else until
    if not isinstance(stops, list | tuple) or not all(stop is None or isinstance(stop, str) for stop in stops):
        raise UserError(f"generation option until={until}: expected a text or a list of texts, such as until=['5']")
    return tuple(stop for stop in stops if stop)


def by_task(requests: Sequence[Instance]) -> Mapping[str, list[int]]:
    """The indices of the requests of each task, in order."""
    indices = defaultdict(list)
    for n, request in enumerate(requests):
        indices[request.task_name or ""].append(n)
    return indices


def generations(
    requests: Sequence[Instance],
    encode: Callable[[str], list[int]],
    eos_id: int,
    size: int,
    shortened: Counter[str],
) -> tuple[list[GenerationRequest], list[Prompt]]:
    """Parse requests, and cut their prompts on the left to leave room for the answer, but not below half a block.

    Repeats of a request get different draws, the same ones in every run. `shortened` counts what did not fit.
    """
    wishes, prompts, seen = [], [], Counter[str]()
    for request in requests:
        text, options = request.args
        wish = parse(options, eos_id=eos_id)
        document = request.doc_id or 0
        name = f"generation {digest_of(text, repr(wish))} document {document} {request.idx}"
        repeat, seen[name] = seen[name], seen[name] + 1
        ids = encode(text)
        kept = min(len(ids), max(size - wish.tokens, size // 2))
        shortened["prompts"] += kept < len(ids)
        shortened["answers"] += wish.tokens > size - kept
        wishes.append(wish)
        prompts.append(
            Prompt(
                record=f"{name} repeat {repeat}",
                tokens=ids[len(ids) - kept :],
                new_tokens=min(wish.tokens, size - kept),
                sampling=wish.sampling,
                index=seed_of(document, request.idx, repeat),
            )
        )
    return wishes, prompts
