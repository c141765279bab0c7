"""Requests of lm-eval in the tokens of one model: rows to score, prompts to go on from, and where to stop."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ltm.answers import Prompt
from ltm.api import Sampling
from ltm.errors import UserError, did_you_mean
from ltm.rng import seed_of
from ltm.row_scoring import Row

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from ltm.tokenizer import Tokenizer

KNOWN = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "reinfer_every")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """`tokens` is the most that may be new; `until` are the strings that end an answer."""

    tokens: int
    sampling: Sampling
    until: tuple[str, ...]

    def cut(self, text: str) -> str:
        """The text up to the first stop string in it."""
        ends = [at for stop in self.until if (at := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text


def parse(options: Mapping[str, Any], *, eos_id: int) -> GenerationRequest:
    """Read the options of a request; they are shared by its repeats and are left as they are.

    `do_sample=false`, or neither it nor a temperature above 0, is greedy; `do_sample=true` alone is temperature 1.

    Raises:
        UserError: an option that we do not know, since an answer without it would be to another question.
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
    """Places of the requests of each task, in order."""
    places = defaultdict(list)
    for n, request in enumerate(requests):
        places[request.task_name or ""].append(n)
    return places


def digest_of(*texts: str) -> str:
    """What texts go by in the names of records."""
    return hashlib.sha256(repr(texts).encode(errors="surrogatepass")).hexdigest()[:24]


def blocks(ids: np.ndarray, size: int, *, record: str, document: int, limit: int | None = None) -> list[Row]:
    """Rows of `size` tokens, the last one shorter, each to be scored given BOS alone; only the first `limit`.

    Block i of document d has noise of index d * 2**32 + i.
    """
    starts = range(0, len(ids), size)[:limit]
    return [
        Row(record=f"{record} block {i}", tokens=ids[start : start + size], context=0, index=(document << 32) + i)
        for i, start in enumerate(starts)
    ]


def joined(encode: Callable[[str], np.ndarray], context: str, text: str) -> tuple[np.ndarray, int]:
    """The ids of both texts, one after the other, and how many are the context's.

    Where a token would span the seam they are encoded apart, so that exactly the text after it can be scored.
    """
    given, whole = encode(context), encode(context + text)
    if not np.array_equal(whole[: len(given)], given):
        whole = np.concatenate([given, encode(text)])
    return whole, len(given)


def continuation(whole: np.ndarray, given: int, size: int, *, record: str, document: int) -> list[Row]:
    """What comes after the first `given` ids as one row, its context cut on the left where both are too long.

    More than `size` new ids are scored in blocks, without context; none give no row. All continuations of a document
    have the same noise, so that they differ by what they say alone.
    """
    new = len(whole) - given
    if new > size:
        return blocks(whole[given:], size, record=record, document=document)
    whole = whole[-size:]
    return [Row(record=record, tokens=whole, context=len(whole) - new, index=document << 32)] if new else []


def greedy(row: Row) -> Prompt:
    """What asks whether decoding gives just this row. A family need not decode the same start of longer texts."""
    return Prompt(
        record=f"greedy {row.record}",
        tokens=row.tokens[: row.context].tolist(),
        new_tokens=len(row.tokens) - row.context,
        sampling=Sampling(temperature=0),
        index=row.index,
    )


def generations(
    requests: Sequence[Instance], tokenizer: Tokenizer, size: int, shortened: Counter[str]
) -> tuple[list[GenerationRequest], list[Prompt]]:
    """What is asked for, and the prompts, cut on the left to leave room for the answer but not below half a block.

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
