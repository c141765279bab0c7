"""Generation: text from nothing, or after a prompt from a corpus, and what can be said of it.

Every model decodes alike: ancestral sampling at temperature 1 unless said otherwise, a fixed number of new tokens, no
stop. A sample is a stretch of the model's stream, as the human passages that it is compared with are stretches of
theirs; an EOS in it gives no text and counts as no token.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ltm.errors import UserError
from tasks import results
from tasks.kinds import Column, Measurement

if TYPE_CHECKING:
    import numpy as np

    from ltm.api import Sampling
    from ltm.data.split import Split
    from ltm.harness import HarnessModel
    from ltm.result import Metric, Result
    from ltm.tokenizer import Tokenizer
    from tasks.catalog import TaskEntry
    from tasks.judge import Judge

ITEMS = "samples"
COLUMNS = (
    Column(metric="gen_ppl", header="Gen PPL", form=".1f", sign=True),
    Column(metric="unigram_entropy", header="Entropy", form=".3f"),
    Column(metric="distinct_2", header="Distinct-2", form=".3f"),
    Column(metric="repetition", header="Repeats", form=".3f"),
    Column(metric="mauve", header="MAUVE", form=".3f"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The human text, what to generate, and who judges it.

    Attributes:
        prompt_tokens: 0 for text from nothing.
        new_tokens: None for as many as fit in a block of the model.
        streams: the text's tokens by tokenizer, once known.
    """

    split: Split
    text: str
    samples: int
    prompt_tokens: int
    new_tokens: int | None
    sampling: Sampling
    scorer: Judge | None
    featuriser: Judge | None
    streams: dict[str, np.ndarray] = field(default_factory=dict)

    def passages(self, model: HarnessModel) -> np.ndarray:
        """Human passages as long as a prompt and a sample of this model together, (N, length)."""
        from tasks.generation.passages import passages

        tokenizer = model.loaded.tokenizer
        if tokenizer.fingerprint not in self.streams:
            self.streams[tokenizer.fingerprint] = tokenizer.encode(self.text)
        return passages(self.streams[tokenizer.fingerprint], self.prompt_tokens + self.new(model))

    def new(self, model: HarnessModel) -> int:
        """New tokens of a sample of this model."""
        return self.new_tokens or model.block_length - self.prompt_tokens


def beside(result: Result) -> list[tuple[str, dict[str, Metric]]]:
    """Rows of human text for the summary: as long as the samples, and, where there is MAUVE, with words shuffled."""
    tokenizer = f"{result.tokenizer['name']} ({result.tokenizer['fingerprint'][:8]})"
    length = f"{result.scoring['new_tokens']} tokens of {tokenizer}"
    rows = []
    for prefix, title in (("human_", f"human, {length}"), ("shuffled_", f"shuffled, {length}")):
        own = [metric for metric in result.metrics if metric.name.startswith(prefix)]
        if own:
            rows.append((title, {metric.name.removeprefix(prefix).partition("[")[0]: metric for metric in own}))
    return rows


def prepare(entry: TaskEntry, options: argparse.Namespace) -> Prepared:
    """The corpus, numbers that make sense, and judges that can be found.

    Raises:
        UserError: the task needs a scorer and none is named; too few samples for MAUVE; and so on.
    """
    from ltm.api import LanguageModel, Sampling
    from ltm.config import whole_number
    from ltm.data import corpora
    from tasks import judge
    from tasks.generation import mauve

    settings = entry.settings["metadata"]
    if settings.get("scorer") == "required" and options.scorer is None:
        raise UserError(f"{entry.name} is Gen PPL, which needs a scorer: --scorer ar-tiny, or pretrained:gpt2-large")
    samples = settings["samples"] if options.samples is None else whole_number("--samples", options.samples, least=2)
    prompt, new = settings["prompt_tokens"], settings["new_tokens"]
    if prompt and options.prompt_tokens is not None:
        prompt = whole_number("--prompt-tokens", options.prompt_tokens, least=1)
    if options.new_tokens is not None:
        new = whole_number("--new-tokens", options.new_tokens, least=1)
    try:
        sampling = Sampling(
            temperature=1.0 if options.temperature is None else options.temperature,
            top_p=None if options.top_p == 1 else options.top_p,
        )
    except ValueError as error:
        raise UserError(f"--temperature, --top-p: {error}") from error
    featuriser = None
    if options.mauve is not None:
        mauve.check_available()
        mauve.check_size(samples)
        featuriser = judge.find("--mauve", options.mauve)
        if featuriser.family.features is LanguageModel.features:
            raise UserError(
                f"--mauve {options.mauve}: the family {featuriser.family.family} has no features of texts; name an "
                "autoregressive model, such as ar-tiny, or pretrained:gpt2-large"
            )
    split = corpora.load(entry.corpus, entry.split, data_dir=options.data_dir)
    return Prepared(
        split=split,
        text="".join(split.iter_texts()),
        samples=samples,
        prompt_tokens=prompt,
        new_tokens=new,
        sampling=sampling,
        scorer=None if options.scorer is None else judge.find("--scorer", options.scorer),
        featuriser=featuriser,
    )


def identity(entry: TaskEntry, prepared: Prepared, model: HarnessModel, options: argparse.Namespace) -> dict[str, Any]:
    """What a result's key is made of; the judges' weights are part of it.

    Raises:
        UserError: a prompt leaves no room in a block.
    """
    new = prepared.new(model)
    if new < 1:
        raise UserError(
            f"{model.loaded.name}: prompts of {prepared.prompt_tokens} tokens leave no room in a block of "
            f"{model.block_length}; fewer --prompt-tokens"
        )
    judges = {"scorer": prepared.scorer, "featuriser": prepared.featuriser}
    return results.identity(
        entry,
        prepared.split,
        model,
        blocks=prepared.samples,
        tokens=prepared.samples * new,
        draws=1,
        precision_of_token_draws="float64",
        temperature=float(prepared.sampling.temperature),
        top_p=prepared.sampling.top_p,
        prompt_tokens=prepared.prompt_tokens,
        new_tokens=new,
        **{what: None if judge is None else _signed(judge.model(options)) for what, judge in judges.items()},
    )


def _signed(judge: HarnessModel) -> str:
    """Who judges, in one line that the board can show, and all that can change what it says."""
    info = judge.loaded.info
    digests = {
        "weights": info["weights_digest"],
        "config": info["config_digest"],
        "tokenizer": info["tokenizer"]["fingerprint"],
    }
    return ", ".join([judge.loaded.name, *(f"{what} {digest[:12]}" for what, digest in digests.items())])


def measure(entry: TaskEntry, prepared: Prepared, model: HarnessModel, options: argparse.Namespace) -> Measurement:
    """Generate, count, and have it judged. Samples are kept as they come, so another judge needs no new ones.

    Raises:
        UserError: the corpus has too few passages; prompt and new tokens do not fit the model.
    """
    from tasks import judge
    from tasks.generation import metrics as generation_metrics

    tokenizer, human = model.loaded.tokenizer, prepared.passages(model)
    wanted = prepared.samples * (1 if prepared.featuriser is None else 2)
    if len(human) < wanted and (prepared.prompt_tokens or prepared.featuriser is not None):
        raise UserError(
            f"{entry.corpus}/{entry.split} in tokens of {tokenizer.name} has {len(human)} passages of {human.shape[1]} "
            f"tokens, {wanted} are needed: ask for fewer --samples, shorter ones, or take a larger corpus (a task "
            "..._openwebtext, or a task file of your own)"
        )
    alike, others = human[: prepared.samples], human[prepared.samples : 2 * prepared.samples]
    prompts = [row[: prepared.prompt_tokens].tolist() for row in alike] if prepared.prompt_tokens else None
    made = _generate(entry, prepared, model, prompts or [[]] * prepared.samples)
    eos = tokenizer.eos_id
    ids = [[token for token in record["tokens"] if token != eos] for record in made]
    said = [_said(tokenizer, prompt, new) for prompt, new in zip(prompts or [[]] * len(ids), ids, strict=True)]
    gold = [(row[: prepared.prompt_tokens].tolist(), row[prepared.prompt_tokens :].tolist()) for row in alike]
    human_said = [_said(tokenizer, *pair) for pair in gold]
    metrics = generation_metrics.statistics(ids)
    metrics.append(generation_metrics.evaluations([record["network_evaluations"] for record in made]))
    if len(gold) > 1:
        metrics += generation_metrics.statistics([new for _, new in gold], "human_")
    records = [
        {
            "sample": n,
            "prompt_ids": prompts[n] if prompts else [],
            "prompt": prompt,
            "ids": record["tokens"],
            "text": text,
            "network_evaluations": record["network_evaluations"],
        }
        for n, (record, (prompt, text)) in enumerate(zip(made, said, strict=True))
    ]
    notes = _notes(prepared, metrics, said, human)
    if prepared.scorer is not None:
        more, note = judge.gen_ppl(entry.name, prepared.scorer.model(options), model, said, human_said, records)
        metrics, notes = metrics + more, notes + note
    if prepared.featuriser is not None:
        reference = [prompt + text for prompt, text in (_said(tokenizer, [], row.tolist()) for row in others)]
        metrics += judge.mauve(prepared.featuriser.model(options), said, human_said, reference)
    return Measurement(
        metrics=tuple(metrics),
        records=records,
        data=results.data(prepared.split),
        seconds=sum(record["seconds"] for record in made),
        tokens=sum(len(record["tokens"]) for record in made),
        notes=tuple(notes),
    )


def _generate(
    entry: TaskEntry, prepared: Prepared, model: HarnessModel, prompts: Sequence[list[int]]
) -> list[dict[str, Any]]:
    from ltm.config import digest
    from ltm.evaluation.rows import Prompt

    new = prepared.new(model)
    way = (new, prepared.sampling.temperature, prepared.sampling.top_p)
    wishes = [
        Prompt(
            record=f"sample {n} {digest([prompt, *way])[:24]}",
            tokens=prompt,
            new_tokens=new,
            sampling=prepared.sampling,
            index=n,
        )
        for n, prompt in enumerate(prompts)
    ]
    try:
        return model.runner.generations(entry.name, wishes)
    except ValueError as error:
        # Some families go on beyond a block; those that cannot say so before they begin.
        if prepared.prompt_tokens + new <= model.block_length:
            raise
        fits = f"--prompt-tokens and --new-tokens must sum to at most {model.block_length}"
        if not prepared.prompt_tokens:
            fits = f"--new-tokens must be at most {model.block_length}"
        raise UserError(f"{model.loaded.name} on {entry.name}: {error}; for this model {fits}") from error


def _said(tokenizer: Tokenizer, prompt: Sequence[int], new: Sequence[int]) -> tuple[str, str]:
    """Prompt and new text; a character whose bytes both share goes to the new text where it can."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode([*prompt, *new])
    return before, whole[len(before) :] if whole.startswith(before) else tokenizer.decode(new)


def _notes(
    prepared: Prepared, metrics: Sequence[Metric], said: Sequence[tuple[str, str]], human: np.ndarray
) -> list[str]:
    notes = []
    values = {metric.name: metric.value for metric in metrics}
    if empty := sum(not text for _, text in said):
        notes.append(f"{empty} of {prepared.samples} samples are empty")
    if broken := sum("\ufffd" in text for _, text in said):
        notes.append(f"{broken} of {prepared.samples} samples have bytes that make no character, shown as U+FFFD")
    if "human_unigram_entropy" in values:
        count = min(len(human), prepared.samples)
        short = "" if count == prepared.samples else f" (only {count}, so its distinct-n are not comparable)"
        notes.append(
            f"human text of that length{short}: entropy {values['human_unigram_entropy']:.3f}, "
            f"distinct-2 {values.get('human_distinct_2', 0):.3f}, self-BLEU {values.get('human_self_bleu', 0):.3f}, "
            f"repetition {values['human_repetition']:.3f}"
        )
    if prepared.scorer is None:
        notes.append("no Gen PPL without a scorer: --scorer NAME")
    if prepared.featuriser is None:
        notes.append("no MAUVE without a featuriser: --mauve NAME, with --samples 500 or more")
    return notes
