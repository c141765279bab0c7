"""Generation: text from nothing, or after a prompt from a corpus, and its statistics.

Every model decodes in the same way: ancestral sampling at temperature 1 unless set otherwise, a fixed number of new
tokens, no stop string. A sample is a stretch of the model's stream, as the human passages that it is compared with are
stretches of theirs; an EOS in it gives no text and counts as no token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ltm.config import digest, whole_number
from ltm.data import corpora
from ltm.data.tokens.text import CorpusText
from ltm.errors import UserError
from ltm.progress import count
from tasks import results
from tasks.generation import gen_perplexity, mauve
from tasks.generation import metrics as generation_metrics
from tasks.kinds import Column, Measurement, ReferenceRow, Task
from tasks.models import HelperModel, find_helper

if TYPE_CHECKING:
    import numpy as np

    from ltm.harness import HarnessModel
    from ltm.result import Identity, Metric, Result
    from tasks.catalog import TaskEntry
    from tasks.options import EvalOptions


class Generation(Task):
    """Generating samples, next to human passages of the same length.

    Attributes:
        samples: how many to generate.
        prompt_tokens: 0 for text from nothing.
        new_tokens: None for as many as fit in a block of the model.
        scorer, featuriser: the models behind Gen PPL and MAUVE, where they are named.
    """

    items = "samples"
    columns = (
        Column(metric="gen_ppl", header="Gen PPL", form=".1f", sign=True),
        Column(metric="unigram_entropy", header="Entropy", form=".3f"),
        Column(metric="distinct_2", header="Distinct-2", form=".3f"),
        Column(metric="repetition", header="Repeats", form=".3f"),
        Column(metric="mauve", header="MAUVE", form=".3f"),
    )

    def __init__(self, entry: TaskEntry, options: EvalOptions):
        """Read the corpus, check the numbers, and find the helper models.

        Raises:
            UserError: the task needs a scorer and none is named; too few samples for MAUVE; and so on.
        """
        from ltm.api import Sampling

        super().__init__(entry, options)
        settings = entry.settings["metadata"]
        if settings.get("scorer") == "required" and options.scorer is None:
            raise UserError(
                f"{entry.name} is Gen PPL, which needs a scorer: --scorer ar-tiny, or pretrained:gpt2-large"
            )
        samples = settings["samples"] if options.samples is None else options.samples
        self.samples = whole_number("--samples", samples, least=2)
        self.prompt_tokens: int = settings["prompt_tokens"]
        if self.prompt_tokens and options.prompt_tokens is not None:
            self.prompt_tokens = options.prompt_tokens
        self.new_tokens = settings["new_tokens"] if options.new_tokens is None else options.new_tokens
        try:
            self.sampling = Sampling(
                temperature=1.0 if options.temperature is None else options.temperature,
                top_p=None if options.top_p == 1 else options.top_p,
            )
        except ValueError as error:
            raise UserError(f"--temperature, --top-p: {error}") from error
        self.featuriser = None if options.mauve is None else _featuriser(options.mauve, self.samples)
        self.split = corpora.load(entry.corpus, entry.split, data_dir=options.data_dir, reading=options.reading)
        self.scorer = None if options.scorer is None else find_helper("--scorer", options.scorer)

    def new(self, model: HarnessModel) -> int:
        """Return the number of new tokens per sample of this model."""
        return self.new_tokens or model.block_length - self.prompt_tokens

    def identity(self, model: HarnessModel) -> Identity:
        """Identify the result by the samples, how they are drawn, and the helpers' weights.

        Raises:
            UserError: a prompt leaves no room in a block.
        """
        new = self.new(model)
        if new < 1:
            raise UserError(
                f"{model.loaded.name}: prompts of {count(self.prompt_tokens, 'tokens')} leave no room in a block of "
                f"{model.block_length}; fewer --prompt-tokens"
            )
        helpers = {"scorer": self.scorer, "featuriser": self.featuriser}
        return results.identity(
            self.entry,
            self.split,
            model,
            blocks=self.samples,
            tokens=self.samples * new,
            draws=1,
            precision_of_token_draws="float64",
            temperature=float(self.sampling.temperature),
            top_p=self.sampling.top_p,
            prompt_tokens=self.prompt_tokens,
            new_tokens=new,
            **{what: None if one is None else _signature(one.model(self.options)) for what, one in helpers.items()},
        )

    def measure(self, model: HarnessModel, identity: Identity) -> Measurement:
        """Generate, count, and score. Samples are kept as they come, so that another scorer needs no new ones.

        Raises:
            UserError: the corpus has too few passages; prompt and new tokens do not fit the model.
        """
        from ltm.evaluation.rows import decoded

        tokenizer, human = model.loaded.tokenizer, self._passages(model)
        alike, others = human[: self.samples], human[self.samples : 2 * self.samples]
        prompts = [row[: self.prompt_tokens].tolist() for row in alike] if self.prompt_tokens else None
        made = self._generate(model, prompts or [[]] * self.samples)
        eos = tokenizer.eos_id
        ids = [[token for token in record["tokens"] if token != eos] for record in made]
        written = [decoded(tokenizer, prompt, new) for prompt, new in zip(prompts or [[]] * len(ids), ids, strict=True)]
        gold = [(row[: self.prompt_tokens].tolist(), row[self.prompt_tokens :].tolist()) for row in alike]
        human_written = [decoded(tokenizer, *pair) for pair in gold]
        metrics = generation_metrics.text_metrics(ids)
        metrics.append(generation_metrics.evaluations([record["network_evaluations"] for record in made]))
        if len(gold) > 1:
            metrics += generation_metrics.text_metrics([new for _, new in gold], "human_")
        records = [
            {
                "sample": n,
                "prompt_ids": prompts[n] if prompts else [],
                "prompt": prompt,
                "ids": record["tokens"],
                "text": text,
                "network_evaluations": record["network_evaluations"],
            }
            for n, (record, (prompt, text)) in enumerate(zip(made, written, strict=True))
        ]
        notes = self._notes(metrics, written, human)
        if self.scorer is not None:
            scorer = self.scorer.model(self.options)
            more, note = gen_perplexity.gen_ppl(self.entry.name, scorer, model, written, human_written, records)
            metrics, notes = metrics + more, notes + note
        if self.featuriser is not None:
            reference = [prompt + text for prompt, text in (decoded(tokenizer, [], row.tolist()) for row in others)]
            metrics += mauve.compare(self.featuriser.model(self.options), written, human_written, reference)
        return Measurement(
            metrics=tuple(metrics),
            records=records,
            data=results.data(self.split),
            seconds=sum(record["seconds"] for record in made),
            tokens=sum(len(record["tokens"]) for record in made),
            notes=tuple(notes),
        )

    @classmethod
    def reference_rows(cls, result: Result) -> Sequence[ReferenceRow]:
        """Return rows for human text as long as the samples and, if there is MAUVE, for its words shuffled."""
        tokenizer = f"{result.tokenizer['name']} ({result.tokenizer['fingerprint'][:8]})"
        length = f"{count(result.scoring['new_tokens'], 'tokens')} of {tokenizer}"
        rows = []
        for prefix, title in (("human_", f"human, {length}"), ("shuffled_", f"shuffled, {length}")):
            metrics = [metric for metric in result.metrics if metric.name.startswith(prefix)]
            if metrics:
                named = {metric.name.removeprefix(prefix).partition("[")[0]: metric for metric in metrics}
                rows.append(ReferenceRow(title, named))
        return rows

    def _passages(self, model: HarnessModel) -> np.ndarray:
        """Return human passages as long as a prompt and a sample of this model together, (N, length).

        Raises:
            UserError: there are too few.
        """
        from tasks.generation.passages import passages

        tokenizer, length = model.loaded.tokenizer, self.prompt_tokens + self.new(model)
        stream = CorpusText(self.split).tokens(tokenizer)
        found, wanted = len(stream) // length, self.samples * (1 if self.featuriser is None else 2)
        if found < wanted and (self.prompt_tokens or self.featuriser is not None):
            raise UserError(
                f"{self.entry.corpus}/{self.entry.split} in tokens of {tokenizer.name} has "
                f"{count(found, 'passages')} of {count(length, 'tokens')}, {wanted} are needed: ask for "
                "fewer --samples, shorter ones, or take a larger corpus (a task ..._openwebtext, or a task "
                "file of your own)"
            )
        return passages(stream, length, most=2 * self.samples)

    def _generate(self, model: HarnessModel, prompts: Sequence[list[int]]) -> list[dict[str, Any]]:
        from ltm.evaluation.rows import Prompt

        new = self.new(model)
        way = (new, self.sampling.temperature, self.sampling.top_p)
        wishes = [
            Prompt(
                record=f"sample {n} {digest([prompt, *way])[:24]}",
                tokens=prompt,
                new_tokens=new,
                sampling=self.sampling,
                index=n,
            )
            for n, prompt in enumerate(prompts)
        ]
        try:
            return model.runner.generations(self.entry.name, wishes)
        except ValueError as error:
            # Some families can generate beyond a block; the others refuse before they begin.
            if self.prompt_tokens + new <= model.block_length:
                raise
            fits = f"--prompt-tokens and --new-tokens must sum to at most {model.block_length}"
            if not self.prompt_tokens:
                fits = f"--new-tokens must be at most {model.block_length}"
            raise UserError(f"{model.loaded.name} on {self.entry.name}: {error}; for this model {fits}") from error

    def _notes(self, metrics: Sequence[Metric], written: Sequence[tuple[str, str]], human: np.ndarray) -> list[str]:
        notes = []
        values = {metric.name: metric.value for metric in metrics}
        if empty := sum(not text for _, text in written):
            notes.append(f"{empty} of {self.samples} samples {'is' if empty == 1 else 'are'} empty")
        if broken := sum("\ufffd" in text for _, text in written):
            notes.append(
                f"{broken} of {self.samples} samples {'has' if broken == 1 else 'have'} bytes that form no character, "
                "shown as U+FFFD"
            )
        if "human_unigram_entropy" in values:
            count = min(len(human), self.samples)
            short = "" if count == self.samples else f" (only {count}, so its distinct-n are not comparable)"
            notes.append(
                f"human text of that length{short}: entropy {values['human_unigram_entropy']:.3f}, "
                f"distinct-2 {values.get('human_distinct_2', 0):.3f}, "
                f"self-BLEU {values.get('human_self_bleu', 0):.3f}, "
                f"repetition {values['human_repetition']:.3f}"
            )
        if self.scorer is None:
            notes.append("no Gen PPL without a scorer: --scorer NAME")
        if self.featuriser is None:
            notes.append("no MAUVE without a featuriser: --mauve NAME, with --samples 500 or more")
        return notes


def _featuriser(name: str, samples: int) -> HelperModel:
    mauve.check_available()
    mauve.check_size(samples)
    featuriser = find_helper("--mauve", name)
    if not featuriser.family.has_features():
        raise UserError(
            f"--mauve {name}: the family {featuriser.family.family} has no features of texts; name an autoregressive "
            "model, such as ar-tiny, or pretrained:gpt2-large"
        )
    return featuriser


def _signature(helper: HarnessModel) -> str:
    """Return a line that identifies a helper on the board, with everything that can change its numbers."""
    info = helper.loaded.info
    digests = {
        "weights": info["weights_digest"],
        "config": info["config_digest"],
        "tokenizer": info["tokenizer"]["fingerprint"],
    }
    return ", ".join([helper.loaded.name, *(f"{what} {digest[:12]}" for what, digest in digests.items())])
