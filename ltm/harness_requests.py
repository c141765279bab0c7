"""Requests of lm-eval, by task, and its generation requests as prompts in the tokens of one model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltm.api import Sampling
from ltm.errors import UserError, did_you_mean
from ltm.evaluation.rows import Prompt, digest_of
from ltm.rng import seed_of

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from ltm.tokenizer import Tokenizer

KNOWN = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "reinfer_every")


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
        UserError: an unknown option: ignoring it would answer another question.
    """
    from lm_eval.models.utils import normalize_gen_kwargs

    wish: dict[str, Any] = dict(normalize_gen_kwargs(dict(options)))
    for name in wish:
        if name not in KNOWN:
            raise did_you_mean("generation option", name, KNOWN)
    temperature = float(wish.get("temperature", 1.0)) if wish["do_sample"] else 0.0
    top_k, top_p = int(wish.get("top_k") or 0), float(wish.get("top_p") or 1.0)
    try:
        sampling = Sampling(
            temperature=temperature,
            # Other libraries write 0 or -1 for all.
            top_k=top_k if top_k > 0 else None,
            top_p=top_p if top_p < 1 else None,
            stop_ids=(eos_id,),
            reinfer_every=int(wish["reinfer_every"]) if wish.get("reinfer_every") else None,
        )
    except ValueError as error:
        raise UserError(f"generation options {dict(options)}: {error}") from error
    if wish["max_gen_toks"] < 1:
        raise UserError(f"max_gen_toks={wish['max_gen_toks']}: expected at least 1")
    return GenerationRequest(tokens=wish["max_gen_toks"], sampling=sampling, until=tuple(s for s in wish["until"] if s))


def by_task(requests: Sequence[Instance]) -> Mapping[str, list[int]]:
    """The indices of the requests of each task, in order."""
    indices = defaultdict(list)
    for n, request in enumerate(requests):
        indices[request.task_name or ""].append(n)
    return indices


def generations(
    requests: Sequence[Instance], tokenizer: Tokenizer, size: int, shortened: Counter[str]
) -> tuple[list[GenerationRequest], list[Prompt]]:
    """Parse requests, and cut their prompts on the left to leave room for the answer, but not below half a block.

    Repeats of a request get different draws, the same ones in every run. `shortened` counts what did not fit.
    """
    wishes, prompts, seen = [], [], Counter[str]()
    for request in requests:
        text, options = request.args
        wish = parse(options, eos_id=tokenizer.eos_id)
        document = request.doc_id or 0
        name = f"generation {digest_of(text, repr(wish))} document {document} {request.idx}"
        repeat, seen[name] = seen[name], seen[name] + 1
        ids = tokenizer.encode(text)
        kept = min(len(ids), max(size - wish.tokens, size // 2))
        shortened["prompts"] += kept < len(ids)
        shortened["answers"] += wish.tokens > size - kept
        wishes.append(wish)
        prompts.append(
            Prompt(
                record=f"{name} repeat {repeat}",
                tokens=ids[len(ids) - kept :].tolist(),
                new_tokens=min(wish.tokens, size - kept),
                sampling=wish.sampling,
                index=seed_of(document, request.idx, repeat),
            )
        )
    return wishes, prompts
