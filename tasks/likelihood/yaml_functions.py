"""What the perplexity tasks do: a split as one document, and the numbers that a log-likelihood of it can give.

lm-eval loads this file by its path, so it imports `ltm` and third-party packages alone. The units are in stats.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ltm.data.separated_text import SeparatedText
from ltm.errors import UserError


def load(
    corpus: str, split: str, data_dir: str | None = None, eos_between_documents: bool = False, **_: Any
) -> dict[str, Any]:
    """The split as a data set of one document: all its detokenised text, with what is known of the raw text.

    lm-eval passes the model's arguments along, hence `**_`. `data_dir` and `eos_between_documents` come from
    `--metadata data_dir=DIR,eos_between_documents=true`; without the first, $LTM_DATA_DIR is the directory of corpora.
    """
    import datasets

    from ltm.data import corpora

    if not isinstance(eos_between_documents, bool):
        raise UserError(f"eos_between_documents: expected true or false, found {eos_between_documents!r}")

    text = corpora.load(corpus, split, data_dir=Path(data_dir) if data_dir else None)
    document = {
        "text": "".join(text.iter_texts()),
        "bytes": text.bytes,
        "words": text.words,
        "documents": len(text.documents),
        "corpus": corpus,
        "split": split,
        "fingerprint": text.fingerprint,
        "source": json.dumps(text.source, sort_keys=True),
    }
    if eos_between_documents:
        document["parts"] = text.texts()
    return {split: datasets.Dataset.from_list([document])}


def text(document: dict[str, Any]) -> str:
    """What is scored. A function, since a template could touch white space."""
    return SeparatedText(document["parts"]) if "parts" in document else document["text"]


def results(document: dict[str, Any], results: list[Any]) -> dict[str, Any]:
    """The metrics that this backend's answer can give, each with the same item for its aggregation in stats.py.

    A plain float knows neither its tokens nor its parts, so it gives word perplexity and bits per byte.

    Raises:
        UserError: the answer is not a finite number, or from a backend that knows no separators.
    """
    (value,) = results
    if "parts" in document and not hasattr(value, "likelihoods"):
        raise UserError("eos_between_documents is for --model ltm; other backends see no separator: leave it out")
    if not float("-inf") < float(value) < float("inf"):
        raise UserError(f"{document['corpus']}/{document['split']}: the model's log-likelihood is {float(value)}")
    item = (value, document["bytes"], document["words"])
    names = []
    if getattr(value, "complete", True):
        names += ["word_perplexity", "bits_per_byte"]
    if likelihoods := getattr(value, "likelihoods", None):
        names += ["token_perplexity"]
        # Beyond all floats in a single block, and there is no mean.
        if value.complete and (value.blocks.nats_N / value.blocks.tokens_N).min() > -700:
            names += ["token_perplexity_mean_of_exp"]
        if len(value.blocks.nats_N) > 1:
            names += ["token_perplexity_ci95_low", "token_perplexity_ci95_high"]
        # An exact value has no Monte Carlo error, and one draw does not tell its own.
        if value.mc_variance is not None:
            names += ["token_perplexity_mc_se"]
        names += [f"{term.lstrip('-')}_per_token" for term in value.terms if term in ("-kl", "reconstruction")]
        if "importance_bound" in likelihoods:
            names += ["importance_bound_token_perplexity"]
        if "reused_noise_estimate" in likelihoods:
            names += ["reused_noise_token_perplexity_estimate"]
    return dict.fromkeys(names, item)


def results_in_chunks(document: dict[str, Any], answers: list[Any]) -> dict[str, Any]:
    """As `results`, of a text that was read in chunks.

    Raises:
        UserError: it was not: an ELBO must not go by the name of a prequential task.
    """
    if getattr(answers[0], "headline", None) not in ("prequential_bound", "exact"):
        raise UserError(
            "prequential tasks want a model that reads in chunks: run ltm-eval, or lm_eval with "
            "--model_args pretrained=NAME,prequential=16"
        )
    return results(document, answers)
