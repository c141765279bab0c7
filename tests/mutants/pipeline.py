"""Mutants of what is made of likelihoods, of how problems are asked, and of draws."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from unittest import mock

import torch

from baselines.diffusion import unmasking
from ltm import harness, statistics
from ltm.evaluation.runner import Runner
from ltm.nn import left_to_right
from ltm.tokenizer import Tokenizer
from tasks.problems import dataset, metrics, solver
from tasks.problems.dataset import Problems
from tests.mutants import Patch, changed, instead, mutant
from tests.mutants.task_checks import GROUPS

# From likelihoods to numbers.


@mutant("ar", "scored BOS: one token too many per block in the count", caught_by="accounting")
def scored_bos() -> Patch:
    def make(sound):
        def bad(records, *, stream_tokens, headline):
            found = sound(records, stream_tokens=stream_tokens + len(records), headline=headline)
            for part in found.likelihoods.values():
                part.tokens_N[:] += 1
            return found

        return bad

    return instead(harness, "gather", make)


@mutant("ar", "perplexity as the mean of the blocks' perplexities", caught_by="accounting")
def mean_of_perplexities() -> Patch:
    def make(sound):
        def bad(nats_N, tokens_N, mc_var_N=None):
            found = sound(nats_N, tokens_N, mc_var_N)
            return found._replace(nats=found.tokens * math.log(statistics.mean_of_exp(nats_N, tokens_N)))

        return bad

    return instead(statistics, "nats_total", make)


@mutant("ar", "bytes counted from the tokens: those of the scored text, not of the raw text", caught_by="accounting")
def bytes_of_tokens() -> Patch:
    return instead(statistics.NatsTotal, "bits_per_byte", lambda sound: lambda self, _: sound(self, self.tokens))


@mutant("ar", "text in lower case, with the bytes of the original text", caught_by="accounting")
def small_letters() -> Patch:
    return instead(Tokenizer, "encode", lambda sound: lambda self, text: sound(self, text.lower()))


def text_as(change: Callable[[str], str]) -> Patch:
    """Every text is changed before it is tokenised."""
    return instead(Tokenizer, "encode_batch", lambda sound: lambda self, texts: sound(self, list(map(change, texts))))


@mutant("ar", "runs of four spaces or more are tokenised as three", caught_by="whole_text")
def runs_of_spaces_shortened() -> Patch:
    return text_as(lambda text: re.sub(" {4,}", "   ", text))


@mutant("ar", "numbers are tokenised as their first digit", caught_by="whole_text")
def numbers_as_one_digit() -> Patch:
    return text_as(lambda text: re.sub(r"(\d)\d+", r"\1", text))


@mutant("ar", "the last, shorter block is dropped", caught_by="accounting")
def last_block_dropped() -> Patch:
    def make(sound):
        return lambda ids, size, **named: sound(ids[: max(1, len(ids) // size) * size], size, **named)

    return instead(harness, "blocks", make)


@mutant("ar", "answers cached without the model's name: another model's are returned", caught_by="depends_on_weights")
def answers_of_another_model() -> Patch:
    return changed(Runner, "circumstances", lambda kept: {"task": kept["task"]})


@mutant(
    "ar", "answers cached by the number of the document: another text's are returned", caught_by="depends_on_weights"
)
def answers_of_another_text() -> Patch:
    return mock.patch.object(harness, "name_of", lambda text: "text")


# Problems and draws.


@mutant("tasks", "exemplars taken from the problems that are asked", caught_by="prompts")
def exemplars_of_the_test() -> Patch:
    return instead(Problems, "parsed", lambda sound: lambda self: (sound(self)[0],) * 2)


@mutant("tasks", "problems of train that are also asked stay among the exemplars", caught_by="prompts")
def duplicates_kept() -> Patch:
    return mock.patch.object(Problems, "parsed", lambda self: tuple(dataset.problems(split) for split in self))


@mutant("tasks", "substring scoring: an answer is right if its characters occur anywhere", caught_by="answers")
def substring_scoring() -> Patch:
    return mock.patch.object(solver, "answer", lambda rule, text, gold: gold if gold in text else None)


@mutant("tasks", "pass@k as 1 - (1 - c/n)^k", caught_by="rates")
def pass_with_replacement() -> Patch:
    return mock.patch.object(metrics, "pass_at_k", lambda n, c, k: 1 - (1 - c / n) ** k)


@mutant("tasks", "maj@k over all samples, with ties won", caught_by="rates")
def majority_of_all() -> Patch:
    def bad(answers, gold, k):
        return float(answers.count(gold) * 2 >= len(answers))

    return mock.patch.object(metrics, "majority_at_k", bad)


@mutant(
    "tasks", "float32 Gumbel noise, with the mask competing with the tokens at every step", caught_by="peaked_draws"
)
def float32_gumbel() -> Patch:
    def bad(predict, canvas_BL, mask_id, rates, noise, **options):
        from tests.baselines.diffusion.test_unmasking import gumbel_counts

        counts = gumbel_counts(torch.float32, canvas_BL.numel())
        drawn, first = [], 0
        for count, tokens in zip(counts.tolist(), GROUPS.values(), strict=True):
            drawn += [first + i % tokens for i in range(count)]
            first += tokens
        return torch.tensor(drawn).view_as(canvas_BL), None

    return mock.patch.object(unmasking, "ancestral", bad)


@mutant("ar", "samples drawn at temperature 0.8 without reporting it", caught_by="samples_follow_the_law")
def cooler_draws() -> Patch:
    return instead(left_to_right, "draw", lambda sound: lambda logits_BV, *rest: sound(logits_BV / 0.8, *rest))
