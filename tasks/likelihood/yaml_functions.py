"""Functions for the YAML files of likelihood tasks: loading texts, and turning log-likelihoods into metrics.

lm-eval loads this file by its path, so it imports only `ltm` and third-party packages.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ltm import statistics
from ltm.data import corpora
from ltm.data.reading import Reading
from ltm.data.separated_text import SeparatedText
from ltm.data.split import Split
from ltm.errors import UserError


def load_text(
    corpus: str,
    split: str,
    data_dir: str | None = None,
    eos_between_documents: bool = False,
    limit_documents: int | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Load a split as a data set of one document: its detokenised text, with the counts of the raw text.

    lm-eval passes the model's arguments along, hence `**others`. `data_dir`, `eos_between_documents` and the options of
    `ltm.data.reading` come from `--metadata data_dir=DIR,eos_between_documents=true,newlines=universal`; without the
    first, $LTM_DATA_DIR is the directory of corpora. `limit_documents` keeps only the first ones: `--limit` of lm-eval,
    see `ltm.evaluation.lm_eval_options`.
    """
    import datasets

    if not isinstance(eos_between_documents, bool):
        raise UserError(f"eos_between_documents: expected true or false, found {eos_between_documents!r}")

    directory = Path(data_dir) if data_dir else None
    text = corpora.load(corpus, split, data_dir=directory, reading=Reading.among(others))
    if limit_documents is not None:
        first = text.documents[:limit_documents]
        text = Split.of(corpus, split, first, unit=text.unit, source=text.source, detokenizer=text.detokenizer)
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
        document["parts"] = list(text.texts())
    return {split: datasets.Dataset.from_list([document])}


def text(document: dict[str, Any]) -> str:
    """Return the text to score. A function, since a template could change white space."""
    return SeparatedText(document["parts"]) if "parts" in document else document["text"]


def results(document: dict[str, Any], results: list[Any]) -> dict[str, Any]:
    """Return an item for each metric that this backend's answer can give; the `lm_` functions below aggregate them.

    A plain float knows neither its tokens nor its terms, so it gives word perplexity and bits per byte only.

    Raises:
        UserError: the answer is not a finite number, or the backend knows no separators.
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
        # There is no mean if a single block exceeds all floats.
        if value.complete and (value.blocks.nats_N / value.blocks.tokens_N).min() > -700:
            names += ["token_perplexity_mean_of_exp"]
        if len(value.blocks.nats_N) > 1:
            names += ["token_perplexity_ci95_low", "token_perplexity_ci95_high"]
        # An exact value has no Monte Carlo error, and one draw cannot estimate its own.
        if value.mc_variance is not None:
            names += ["token_perplexity_mc_se"]
        names += [f"{term.lstrip('-')}_per_token" for term in value.terms if term in ("-kl", "reconstruction")]
        if "importance_bound" in likelihoods:
            names += ["importance_bound_token_perplexity"]
        if "reused_noise_estimate" in likelihoods:
            names += ["reused_noise_token_perplexity_estimate"]
    return dict.fromkeys(names, item)


def results_in_chunks(document: dict[str, Any], answers: list[Any]) -> dict[str, Any]:
    """Return what `results` does, for a text that was read in chunks.

    Raises:
        UserError: the text was not read in chunks; a prequential task must not report an ELBO.
    """
    if getattr(answers[0], "headline", None) not in ("prequential_bound", "exact"):
        raise UserError(
            "prequential tasks need a model that reads in chunks: run ltm-eval, or lm_eval with "
            "--model_args pretrained=NAME,prequential=16"
        )
    return results(document, answers)


def cut_last_word(text: str) -> tuple[str, str]:
    """Split a text into what precedes its last word and that word with a space before it, as LAMBADA does.

    Words are separated by white space (arXiv 1606.06031). A text of one word has an empty context.
    """
    *before, word = text.rstrip().rsplit(maxsplit=1) or [""]
    return ("", word) if not before else (before[0], f" {word}")


def last_words(texts: Split) -> list[tuple[str, str]]:
    """Cut each text of a split before its last word.

    Raises:
        UserError: a text has no word. To count it as predicted would improve the perplexity, and to leave it out would
            change what is compared.
    """
    pairs = [cut_last_word(text) for text in texts.iter_texts()]
    for number, (_, word) in enumerate(pairs, start=1):
        if not word:
            raise UserError(
                f"{texts.corpus}/{texts.split}: document {number} of {len(pairs)} is blank and has no last word; "
                "remove blank lines from the file"
            )
    return pairs


def load_last_words(corpus: str, split: str, data_dir: str | None = None, **others: Any) -> dict[str, Any]:
    """Load a split with one row per document, detokenised, with `context` and `word`."""
    import datasets

    directory = Path(data_dir) if data_dir else None
    texts = corpora.load(corpus, split, data_dir=directory, reading=Reading.among(others))
    rows = [{"context": context, "word": word} for context, word in last_words(texts)]
    return {split: datasets.Dataset.from_list(rows)}


def context(document: dict[str, Any]) -> str:
    """Return the text before the last word."""
    return document["context"]


def word(document: dict[str, Any]) -> str:
    """Return the last word, with the space before it."""
    return document["word"]


# Aggregations. An item is (log-likelihood, bytes, words) of a document, as `results` makes it.


def lm_token_perplexity(items: Sequence[Any]) -> float:
    """Token perplexity of the headline likelihood."""
    return _perplexity_of(items).value


def lm_token_perplexity_mc_se(items: Sequence[Any]) -> float:
    """Monte Carlo standard error of the token perplexity."""
    return _perplexity_of(items).stderr_mc or 0.0


def lm_token_perplexity_ci95_low(items: Sequence[Any]) -> float:
    """Lower end of the bootstrap interval of the token perplexity."""
    ci95 = _perplexity_of(items).ci95
    assert ci95 is not None
    return ci95[0]


def lm_token_perplexity_ci95_high(items: Sequence[Any]) -> float:
    """Upper end of the bootstrap interval of the token perplexity."""
    ci95 = _perplexity_of(items).ci95
    assert ci95 is not None
    return ci95[1]


def lm_token_perplexity_mean_of_exp(items: Sequence[Any]) -> float:
    """Mean of the blocks' perplexities, which some published scripts report."""
    parts = [value.blocks for value, *_ in items]
    return statistics.mean_of_exp(
        *(np.concatenate([getattr(part, name) for part in parts]) for name in ("nats_N", "tokens_N"))
    )


def lm_word_perplexity(items: Sequence[Any]) -> float:
    """exp(total nats / words of the raw text)."""
    nats, words = -math.fsum(item[0] for item in items), sum(item[2] for item in items)
    return statistics.perplexity(nats / words)


def lm_bits_per_byte(items: Sequence[Any]) -> float:
    """Total bits over the bytes of the raw text."""
    return -math.fsum(item[0] for item in items) / sum(item[1] for item in items) / math.log(2)


def lm_kl_per_token(items: Sequence[Any]) -> float:
    """KL part of the headline likelihood, nats per token."""
    return _term_of(items, "-kl")


def lm_reconstruction_per_token(items: Sequence[Any]) -> float:
    """Reconstruction part of the headline likelihood, nats per token."""
    return _term_of(items, "reconstruction")


def lm_importance_bound_token_perplexity(items: Sequence[Any]) -> float:
    """Token perplexity of the importance bound."""
    return _perplexity_of(items, "importance_bound").value


def lm_reused_noise_token_perplexity_estimate(items: Sequence[Any]) -> float:
    """Token perplexity of the reused-noise estimate, which is not a bound."""
    return _perplexity_of(items, "reused_noise_estimate").value


def _perplexity_of(items: Sequence[Any], likelihood: str | None = None) -> statistics.Measured:
    parts = [value.likelihoods[likelihood or value.headline] for value, *_ in items]
    tokens_N = np.concatenate([part.tokens_N for part in parts])
    known = all(part.mc_var_N is not None for part in parts)
    mc_var_N = np.concatenate([part.mc_var_N for part in parts]) if known else None
    return statistics.nats_total(np.concatenate([part.nats_N for part in parts]), tokens_N, mc_var_N).perplexity()


def _term_of(items: Sequence[Any], term: str) -> float:
    parts = [value.blocks for value, *_ in items]
    return statistics.term_per_token(
        np.concatenate([part.terms[term] for part in parts]), np.concatenate([part.tokens_N for part in parts])
    )
