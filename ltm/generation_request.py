"""What a generation request of lm-eval asks for: how many tokens, drawn how, and where to stop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ltm.api import Sampling
from ltm.errors import UserError, did_you_mean

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
