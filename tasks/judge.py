"""Models that judge what others wrote, and what they say of it and of human text.

They are found before any work starts, and loaded once, under their own default settings.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm.errors import UserError

if TYPE_CHECKING:
    from ltm.api import LanguageModel
    from ltm.harness import HarnessModel
    from ltm.result import Metric


@dataclass(slots=True, kw_only=True)
class Judge:
    """A model named on the command line. Get one from `find`.

    Attributes:
        place: where its weights are; None for a preset that trains itself first.
    """

    name: str
    place: str | None
    family: type[LanguageModel]
    _model: HarnessModel | None = field(default=None, repr=False)

    def model(self, options: argparse.Namespace) -> HarnessModel:
        """The model, on the device and in the dtype of the run; settings of the judged models are not its own.

        One from elsewhere than the model store has a digest in its name, which others may have been trained under too.
        """
        from ltm.files import home
        from tasks import models

        if self._model is None:
            own: dict[str, object] = {"set": [], "draws": None, "headline_only": True, "limit_blocks": None}
            self._model = models.open_model(self.name, self.place, argparse.Namespace(**{**vars(options), **own}))
            loaded = self._model.loaded
            if self.place and Path(self.place).is_dir() and Path(self.place).parent != home() / "models" / loaded.name:
                name = f"{loaded.name}@{loaded.info['weights_digest'][:8]}"
                self._model.loaded = dataclasses.replace(loaded, name=name)
        return self._model


def find(option: str, name: str) -> Judge:
    """The judge of that name.

    Raises:
        UserError: there is no such model, or it has no weights; names the option.
    """
    from ltm import model_store, registry
    from ltm.training import checkpoint

    try:
        place = model_store.locate(name, None, ())
        if source := registry.external_model(name):
            family = source[0]
        elif place is None:
            family = registry.preset(name)[0]
        else:
            family = registry.model_family(checkpoint.read_info(Path(place))[1]["family"])
    except UserError as error:
        raise UserError(f"{option} {name}: {error}") from error
    return Judge(name=name, place=place, family=family)


def label(model: HarnessModel) -> str:
    """The judge's name in a metric's name: `gpt2-large` for `pretrained:gpt2-large`."""
    return model.loaded.name.removeprefix("pretrained:")


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
    from tasks.generation import gen_perplexity
    from tasks.generation import metrics as generation_metrics

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
    """MAUVE against one set of human texts: of the model's, of other human ones, the ceiling, and of those shuffled."""
    from tasks.generation import mauve
    from tasks.generation import metrics as generation_metrics

    ceiling = ["".join(pair) for pair in human]
    sets = {
        "": ["".join(pair) for pair in said],
        "human_": ceiling,
        "shuffled_": [mauve.shuffled_words(text, n) for n, text in enumerate(ceiling)],
    }
    p_ND, metrics = mauve.features(featuriser, reference), []
    for compared, texts in sets.items():
        q_ND = mauve.features(featuriser, texts)
        metrics += generation_metrics.mauve(
            mauve.mauve(p_ND, q_ND), label(featuriser), min(len(p_ND), len(q_ND)), compared=compared
        )
    return metrics
