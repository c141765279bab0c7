"""Mutants of exact likelihoods and of diffusion bounds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F

from baselines import ar
from baselines.diffusion import masking, md4, mdlm, replacing, score_entropy
from baselines.diffusion.md4 import MD4
from baselines.ngram import NGram
from ltm.nn import block
from ltm.nn.attention import attend
from ltm.nn.transformer import Transformer
from tests.mutants import Patch, changed, instead, mutant

# Exact likelihoods.


@mutant("ar", "target leak by one: each position sees the token that it predicts", while_trained=True)
def leak_by_one() -> Patch:
    return mock.patch.object(Transformer, "with_bos", lambda self, tokens_BL: tokens_BL)


@mutant("ar", "attention in both directions", while_trained=True)
def sees_the_future() -> Patch:
    return mock.patch.object(block, "causal_attention", lambda q, k, v, window: attend(q, k, v, None))


@mutant("ar", "the first token of a block is counted but not scored")
def first_token_free() -> Patch:
    return changed(ar.Autoregressive, "token_nats", lambda nats_BL: F.pad(nats_BL[:, 1:], (1, 0)))


def from_logits(value: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Patch:
    return mock.patch.object(ar, "token_nats", lambda h, head, targets: value(h @ head.T, targets[:, None])[:, 0])


@mutant("ar", "logits as log-probabilities")
def no_normalisation() -> Patch:
    return from_logits(lambda logits, targets: logits.gather(1, targets))


@mutant("ar", "temperature 0.8 without renormalising")
def temperature() -> Patch:
    return from_logits(lambda logits, targets: logits.gather(1, targets) / 0.8 - logits.logsumexp(1, True))


@mutant("ar", "softmax over the batch instead of the vocabulary")
def softmax_over_the_batch() -> Patch:
    return from_logits(lambda logits, targets: logits.log_softmax(0).gather(1, targets))


@mutant("ar", "the target's logit in bfloat16, the normaliser in full precision")
def rounded_targets() -> Patch:
    return from_logits(
        lambda logits, targets: logits.gather(1, targets).bfloat16().to(logits) - logits.logsumexp(1, True)
    )


@mutant("ar", "a leak at every eighth token, and nowhere else")
def leak_at_ends() -> Patch:
    def bad(nats_BL):
        return torch.where(torch.arange(nats_BL.shape[1]) % 8 == 7, 0.1 * nats_BL, nats_BL)

    return changed(ar.Autoregressive, "token_nats", bad)


@mutant("ar", "the longest context in a batch is used for all rows")
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


@mutant("ngram", "discounts that do not add up: more weight is passed down than was taken")
def too_much_passed_down() -> Patch:
    return changed(NGram, "_backed_off", lambda found: (found[0], found[1] * 1.2))


# Diffusion.


def masks_with(change: Callable[[Any], Any], **limits: float) -> Patch:
    """Every draw of masks changed, and drawn from a part of the integral only."""

    def make(sound):
        return lambda *given, **named: [change(masks) for masks in sound(*given, **(named | limits))]

    return instead(mdlm, "draw_masks", make)


@mutant("mdlm", "1/t missing: every masked token weighs the same")
def no_weight() -> Patch:
    return masks_with(lambda masks: masks._replace(weight_BL=masks.masked_BL.double()))


@mutant("mdlm", "time truncated: the quarter with most masks left out")
def no_late_times() -> Patch:
    return masks_with(lambda masks: masks._replace(weight_BL=0.75 * masks.weight_BL), high=0.75)


@mutant("mdlm", "time truncated: the tenth with fewest masks left out")
def no_early_times() -> Patch:
    return masks_with(lambda masks: masks._replace(weight_BL=0.9 * masks.weight_BL), low=0.1)


@mutant("mdlm", "the mean over easy masks instead of the full integral")
def easy_masks_only() -> Patch:
    return masks_with(lambda masks: masks, high=0.5)


@mutant("mdlm", "the best draw instead of the mean")
def best_draw() -> Patch:
    def make(sound):
        def bad(nats_KB, tokens_B, ends=None):
            found = sound(nats_KB, tokens_B, ends)["elbo"]
            return {"elbo": dataclasses.replace(found, nats_B=nats_KB.max(0).values)}

        return bad

    return instead(mdlm, "diffusion_bound", make)


@mutant("mdlm", "draws averaged as probabilities")
def mean_of_exponentials() -> Patch:
    def make(sound):
        def bad(nats_KB, tokens_B, ends=None):
            found = sound(nats_KB, tokens_B, ends)["elbo"]
            nats_B = nats_KB.logsumexp(0) - math.log(len(nats_KB))
            return {"elbo": dataclasses.replace(found, nats_B=nats_B, averaged=False)}

        return bad

    return instead(mdlm, "diffusion_bound", make)


@mutant("mdlm", "token nats floored at -5")
def floor_under_tokens() -> Patch:
    return changed(mdlm, "token_nats", lambda nats_N: nats_N.clamp(min=-5.0))


@mutant("mdlm", "tokens of a batch beyond a multiple of 512 are not scored")
def rest_of_batch_dropped() -> Patch:
    def bad(nats_N):
        scored = len(nats_N) // 512 * 512 or len(nats_N)
        return F.pad(nats_N[:scored], (0, len(nats_N) - scored))

    return changed(mdlm, "token_nats", bad)


@mutant("mdlm", "padding is attended to")
def padding_is_seen() -> Patch:
    return mock.patch.object(mdlm, "visible_keys", lambda real_BL: None)


@mutant("mdlm", "a stated variance ten times too small")
def understated_error() -> Patch:
    return changed(masking, "variance_of_mean", lambda variance_B: None if variance_B is None else variance_B / 10)


@mutant("md4", "unmasked targets: the network sees what it predicts", while_trained=True)
def unmasked_targets() -> Patch:
    def make(sound):
        def bad(self, tokens_BL, scored_BL, rng, *, draws):
            for _, time_B, weight_BL in sound(self, tokens_BL, scored_BL, rng, draws=draws):
                yield tokens_BL, time_B, weight_BL

        return bad

    return instead(MD4, "_masked", make)


@mutant(
    "sedd-uniform",
    "noise stopped at sigma 1, where the text still shows, while the prior is paid for at full sigma",
)
def prior_not_reached() -> Patch:
    return mock.patch.object(replacing, "SIGMA_HIGH", 1.0)


@mutant(
    "sedd-uniform",
    "the KL to the prior at the noise end left out",
    escapes="1e-6 nats per token with 3 outputs, 1e-4 with 257: below the error of every check",
)
def noise_end_for_free() -> Patch:
    return mock.patch.object(score_entropy, "noise_end", lambda sigma, outputs: 0.0)


@mutant("md4", "the data end left out", escapes="1e-4 nats per token with 3 outputs, 6e-4 with 257: the same")
def data_end_for_free() -> Patch:
    return changed(md4, "diffusion_bound", _without_ends)


def _without_ends(found):
    elbo = found["elbo"]
    return {"elbo": dataclasses.replace(elbo, nats_B=elbo.terms["diffusion"], terms={})}


@mutant("bd3lm", "a block sees its own clean tokens", while_trained=True)
def block_sees_itself() -> Patch:
    def make(sound):
        def bad(self, x_BLD, *, positions_L=None, past=None, visible=None, **options):
            if past and visible is not None:
                K, start = past[0][0].shape[2], int(positions_L[0])
                visible = visible.clone()
                visible[:, start:K] |= visible[:, K : K + max(0, K - start)]
            return sound(self, x_BLD, positions_L=positions_L, past=past, visible=visible, **options)

        return bad

    return instead(Transformer, "run", make)
