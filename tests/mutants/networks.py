"""Mutants of exact likelihoods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from unittest import mock

import torch
from torch.nn import functional as F

from baselines import ar
from baselines.ngram import NGram
from ltm.nn import block
from ltm.nn.attention import attend
from ltm.nn.transformer import Transformer
from tests.mutants import Patch, changed, instead, mutant


@mutant(
    "ar",
    "target leak by one: each position sees the token that it predicts",
    while_trained=True,
    caught_by="known_source",
)
def leak_by_one() -> Patch:
    return mock.patch.object(Transformer, "with_bos", lambda self, tokens_BL: tokens_BL)


@mutant("ar", "attention in both directions", while_trained=True, caught_by="total_mass")
def sees_the_future() -> Patch:
    return mock.patch.object(block, "causal_attention", lambda q, k, v, window: attend(q, k, v, None))


@mutant("ar", "hidden states centred over all positions of a text", caught_by="future_leak")
def centred() -> Patch:
    return changed(Transformer, "forward", lambda h_BLD: h_BLD - 0.1 * h_BLD.mean(1, keepdim=True))


@mutant("ar", "the first token of a block is counted but not scored", caught_by="next_token_mass")
def first_token_free() -> Patch:
    return changed(ar.Autoregressive, "token_nats", lambda nats_BL: F.pad(nats_BL[:, 1:], (1, 0)))


def from_logits(value: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Patch:
    return mock.patch.object(ar, "token_nats", lambda h, head, targets: value(h @ head.T, targets[:, None])[:, 0])


@mutant("ar", "logits as log-probabilities", caught_by="total_mass")
def no_normalisation() -> Patch:
    return from_logits(lambda logits, targets: logits.gather(1, targets))


@mutant("ar", "temperature 0.8 without renormalising", caught_by="proposal_mass")
def temperature() -> Patch:
    return from_logits(lambda logits, targets: logits.gather(1, targets) / 0.8 - logits.logsumexp(1, True))


@mutant("ar", "softmax over the batch instead of the vocabulary", caught_by="total_mass")
def softmax_over_the_batch() -> Patch:
    return from_logits(lambda logits, targets: logits.log_softmax(0).gather(1, targets))


@mutant("ar", "the target's logit in bfloat16, the normaliser in full precision", caught_by="next_token_mass")
def rounded_targets() -> Patch:
    return from_logits(
        lambda logits, targets: logits.gather(1, targets).bfloat16().to(logits) - logits.logsumexp(1, True)
    )


@mutant("ar", "a leak at every eighth token, and nowhere else", caught_by="next_token_mass")
def leak_at_ends() -> Patch:
    def bad(nats_BL):
        return torch.where(torch.arange(nats_BL.shape[1]) % 8 == 7, 0.1 * nats_BL, nats_BL)

    return changed(ar.Autoregressive, "token_nats", bad)


@mutant("ar", "the longest context in a batch is used for all rows", caught_by="continuation_mass")
def longest_context() -> Patch:
    def make(sound):
        def bad(self, tokens_BL, *, context=0, **options):
            own = sound(self, tokens_BL, context=context, **options)
            if isinstance(context, int):
                return own
            longest = sound(self, tokens_BL, context=int(context.max()), **options)["exact"]
            return {"exact": dataclasses.replace(own["exact"], nats_B=longest.nats_B)}

        return bad

    return instead(ar.Autoregressive, "log_likelihoods", make)


@mutant("ngram", "discounts that do not add up: more weight is passed down than was taken", caught_by="total_mass")
def too_much_passed_down() -> Patch:
    return changed(NGram, "_backed_off", lambda found: (found[0], found[1] * 1.2))
