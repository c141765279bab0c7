"""What the YAML files of the prequential tasks use; lm-eval loads this file by its path, so it imports `ltm` alone."""

from __future__ import annotations

from typing import Any

from ltm.errors import UserError


def results(document: dict[str, Any], results: list[Any]) -> dict[str, Any]:
    """The metrics of a text that was read in chunks, each with the item that its aggregation in stats.py takes.

    Raises:
        UserError: it was not: an ELBO must not go by this task's name.
    """
    (value,) = results
    if getattr(value, "headline", None) not in ("prequential_bound", "exact"):
        raise UserError(
            "prequential tasks want a model that reads in chunks: run ltm-eval, or lm_eval with "
            "--model_args pretrained=NAME,prequential=16"
        )
    names = ["token_perplexity"]
    if value.complete:
        names += ["word_perplexity", "bits_per_byte"]
    if len(value.blocks.nats_N) > 1:
        names += ["token_perplexity_ci95_low", "token_perplexity_ci95_high"]
    if value.mc_variance is not None:
        names += ["token_perplexity_mc_se"]
    return dict.fromkeys(names, (value, document["bytes"], document["words"]))
