"""What judges say of generated texts, with the same said of human ones: the metrics, and what to know of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tasks import gen_perplexity, generation_metrics, mauve_score
from tasks.judge import label

if TYPE_CHECKING:
    from ltm.harness import HarnessModel
    from ltm.result import Metric


def gen_ppl(
    task: str,
    scorer: HarnessModel,
    model: HarnessModel,
    said: Sequence[tuple[str, str]],
    human: Sequence[tuple[str, str]],
    records: list[dict[str, Any]],
) -> tuple[list[Metric], list[str]]:
    """Gen PPL of what the model said and of human text, with notes; each record gets what the scorer says of it.

    Args:
        said, human: prompts, which may be empty, and what follows them.
    """
    name, metrics, notes = label(scorer), [], []
    found = gen_perplexity.score(scorer, task, [text for _, text in said], [prompt for prompt, _ in said])
    for record, nats, tokens in zip(records, found.nats_N.tolist(), found.tokens_N.tolist(), strict=True):
        record |= {"scorer_nats": nats, "scorer_tokens": tokens}
    metrics += generation_metrics.gen_ppl(found, name)
    if not found.tokens_N.sum():
        notes.append("the scorer found nothing to score: no Gen PPL")
    if len(human):
        people = gen_perplexity.score(
            scorer, f"{task} human", [text for _, text in human], [prompt for prompt, _ in human]
        )
        own = generation_metrics.gen_ppl(people, name, "human_")
        metrics += own
        notes.append(f"Gen PPL of human text by {name}: {own[0].value:.1f}; lower than that is not better")
    if scorer.loaded.tokenizer.fingerprint != model.loaded.tokenizer.fingerprint:
        notes.append(f"Gen PPL counts tokens of {scorer.loaded.tokenizer.name}, in which {name} read the texts anew")
    if scorer.loaded.info["weights_digest"] == model.loaded.info["weights_digest"]:
        notes.append(f"{name} scored its own samples: its Gen PPL says how sure it is of itself")
    if found.kind != "exact":
        notes.append(
            f"the likelihood of {name} ({found.likelihood}) is not exact, so its Gen PPL is marked: {found.kind}"
        )
    return metrics, notes


def mauve(
    featuriser: HarnessModel,
    said: Sequence[tuple[str, str]],
    human: Sequence[tuple[str, str]],
    reference: Sequence[str],
) -> list[Metric]:
    """Against the same human texts: the model's, other human ones (the ceiling), and those with shuffled words."""
    ceiling = ["".join(pair) for pair in human]
    sets = {
        "": ["".join(pair) for pair in said],
        "human_": ceiling,
        "shuffled_": [mauve_score.shuffled_words(text, n) for n, text in enumerate(ceiling)],
    }
    p_ND, metrics = mauve_score.features(featuriser, reference), []
    for compared, texts in sets.items():
        q_ND = mauve_score.features(featuriser, texts)
        metrics += generation_metrics.mauve(
            mauve_score.mauve(p_ND, q_ND), label(featuriser), min(len(p_ND), len(q_ND)), compared=compared
        )
    return metrics
