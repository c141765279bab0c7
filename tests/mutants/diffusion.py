"""Mutants of diffusion bounds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.nn import functional as F

from baselines.diffusion import masking, md4, mdlm, replacing, score_entropy
from baselines.diffusion.md4 import MD4
from baselines.diffusion.mdlm import MDLM
from ltm.api import LikelihoodEstimate
from ltm.nn.spans import prepare_batch, scored_span
from ltm.nn.transformer import Transformer
from tests.mutants import Patch, changed, instead, mutant


def masks_with(change: Callable[[Any], Any], **limits: float) -> Patch:
    """Every draw of masks changed, and drawn from a part of the integral only."""

    def make(sound):
        return lambda *given, **named: [change(masks) for masks in sound(*given, **(named | limits))]

    return instead(mdlm, "draw_masks", make)


@mutant("mdlm", "1/t missing: every masked token weighs the same", caught_by="blank_mass")
def no_weight() -> Patch:
    return masks_with(lambda masks: masks._replace(weight_BL=masks.masked_BL.double()))


@mutant("mdlm", "time truncated: the quarter with most masks left out", caught_by="blank_mass")
def no_late_times() -> Patch:
    return masks_with(lambda masks: masks._replace(weight_BL=0.75 * masks.weight_BL), high=0.75)


@mutant("mdlm", "time truncated: the tenth with fewest masks left out", caught_by="blank_mass")
def no_early_times() -> Patch:
    return masks_with(lambda masks: masks._replace(weight_BL=0.9 * masks.weight_BL), low=0.1)


@mutant("mdlm", "the mean over easy masks instead of the full integral", caught_by="total_mass")
def easy_masks_only() -> Patch:
    return masks_with(lambda masks: masks, high=0.5)


@mutant("mdlm", "weights clipped: n/k at most 8", caught_by="blank_text")
def clipped_weights() -> Patch:
    return masks_with(lambda masks: masks._replace(weight_BL=masks.weight_BL.clamp(max=8.0)))


@mutant(
    "mdlm",
    "weights from a grid of eight times: a share between two of them weighs as the greater",
    caught_by="blank_text",
)
def weights_from_a_grid() -> Patch:
    def coarse(weight_BL):
        # 1 / (k / n), to the next eighth; rounding must not move an eighth to the one after.
        return torch.where(weight_BL > 0, 8 / (8 / weight_BL - 1e-9).ceil(), 0.0)

    return masks_with(lambda masks: masks._replace(weight_BL=coarse(masks.weight_BL)))


@mutant("mdlm", "0.1 nats for nothing for every token beyond the first eight", caught_by="blank_text")
def offset_beyond_eight() -> Patch:
    return instead(
        mdlm,
        "diffusion_bound",
        lambda sound: lambda nats_KB, tokens_B: sound(nats_KB + 0.1 * (tokens_B - 8).clamp(min=0), tokens_B),
    )


@mutant("mdlm", "the best draw instead of the mean", caught_by="total_mass")
def best_draw() -> Patch:
    def make(sound):
        def bad(nats_KB, tokens_B, ends=None):
            found = sound(nats_KB, tokens_B, ends)["elbo"]
            return {"elbo": dataclasses.replace(found, nats_B=nats_KB.max(0).values)}

        return bad

    return instead(mdlm, "diffusion_bound", make)


@mutant("mdlm", "draws averaged as probabilities", caught_by="total_mass")
def mean_of_exponentials() -> Patch:
    def make(sound):
        def bad(nats_KB, tokens_B, ends=None):
            found = sound(nats_KB, tokens_B, ends)["elbo"]
            nats_B = nats_KB.logsumexp(0) - math.log(len(nats_KB))
            return {"elbo": dataclasses.replace(found, nats_B=nats_B, averaged=False)}

        return bad

    return instead(mdlm, "diffusion_bound", make)


@mutant("mdlm", "token nats floored at -5", caught_by="next_token_mass")
def floor_under_tokens() -> Patch:
    return changed(mdlm, "token_nats", lambda nats_N: nats_N.clamp(min=-5.0))


FREE = 64
"""A token that the miniature's vocabulary lacks: `@` in bytes."""


@mutant(
    "mdlm", "one token type is ignored by the loss, as by ignore_index, and in scoring", caught_by="next_token_mass"
)
def ignored_token() -> Patch:
    def make(sound):
        return lambda h_ND, head, targets_N: sound(h_ND, head, targets_N).masked_fill(targets_N == FREE, 0.0)

    return instead(mdlm, "token_nats", make)


@mutant("mdlm", "one token type is never masked, but counted", caught_by="next_token_mass")
def never_masked_token() -> Patch:
    def make(sound):
        def bad(self, tokens_BL, **options):
            def shown(*given):
                tokens_BL, given_BL, scored_BL = prepare_batch(*given)
                return tokens_BL, given_BL | scored_BL & (tokens_BL == FREE), scored_BL & (tokens_BL != FREE)

            with mock.patch.object(mdlm, "prepare_batch", shown):
                found = sound(self, tokens_BL, **options)["elbo"]
            _, scored_BL = scored_span(tokens_BL, options.get("context", 0), options.get("lengths"))
            return {"elbo": dataclasses.replace(found, tokens_B=scored_BL.sum(1))}

        return bad

    return instead(MDLM, "log_likelihoods", make)


@mutant("mdlm", "tokens of a batch beyond a multiple of 512 are not scored", caught_by="accounting")
def rest_of_batch_dropped() -> Patch:
    def bad(nats_N):
        scored = len(nats_N) // 512 * 512 or len(nats_N)
        return F.pad(nats_N[:scored], (0, len(nats_N) - scored))

    return changed(mdlm, "token_nats", bad)


@mutant("mdlm", "padding is attended to", caught_by="accounting")
def padding_is_seen() -> Patch:
    return mock.patch.object(mdlm, "visible_keys", lambda real_BL: None)


@mutant("mdlm", "a stated variance ten times too small", caught_by="stated_error")
def understated_error() -> Patch:
    return changed(masking, "variance_of_mean", lambda variance_B: None if variance_B is None else variance_B / 10)


def keeping(kept: Callable[[torch.Tensor, Any], torch.Tensor]) -> Patch:
    """Some masked tokens of each canvas stay as they are, by its shape and noise; they are scored nevertheless."""

    def make(sound):
        def bad(self, tokens_BL, scored_BL, rng, *, draws):
            for n, (canvas_BL, time_B, weight_BL) in enumerate(sound(self, tokens_BL, scored_BL, rng, draws=draws)):
                yield torch.where(kept(tokens_BL, rng.stream(f"kept {n}")), tokens_BL, canvas_BL), time_B, weight_BL

        return bad

    return instead(MD4, "_masked", make)


@mutant("md4", "unmasked targets: the network sees what it predicts", while_trained=True, caught_by="total_mass")
def unmasked_targets() -> Patch:
    return keeping(lambda tokens_BL, noise: torch.ones_like(tokens_BL, dtype=torch.bool))


@mutant(
    "md4",
    "masked tokens at every eighth position are shown to the network",
    while_trained=True,
    caught_by="next_token_mass",
)
def eighth_position_shown() -> Patch:
    return keeping(lambda tokens_BL, noise: (torch.arange(tokens_BL.shape[1]) % 8 == 3).expand_as(tokens_BL))


@mutant("md4", "one masked token in eight, at random, keeps its id", while_trained=True, caught_by="next_token_mass")
def masked_at_random_kept() -> Patch:
    return keeping(lambda tokens_BL, noise: noise.uniform(tokens_BL.shape[1]) < 1 / 8)


@mutant(
    "sedd-uniform",
    "noise stopped at sigma 1, where the text still shows, while the prior is paid for at full sigma",
    caught_by="next_token_mass",
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


@mutant("bd3lm", "a block sees its own clean tokens", while_trained=True, caught_by="total_mass")
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


@mutant("mdlm", "a duel whose order is chosen by the text: its likeliest token first", caught_by="total_mass")
def oracle_order() -> Patch:
    def bad(self, tokens_BL, *, context=0, lengths=None, draws=None, rng, only=None):
        tokens_BL, _, scored_BL = prepare_batch(tokens_BL, context, lengths, self.vocab_size)
        rows_B, masked_BL = torch.arange(len(tokens_BL)), scored_BL.clone()
        nats_B = torch.zeros(len(tokens_BL), dtype=torch.float64)
        with torch.no_grad():
            while bool(masked_BL.any()):
                canvas_BL = tokens_BL.masked_fill(masked_BL, self.mask_id)
                logits_NV = self.predict(canvas_BL, torch.ones(len(tokens_BL)), masked_BL)
                log_p_N = logits_NV.double().log_softmax(1).gather(1, tokens_BL[masked_BL][:, None])[:, 0]
                log_p_BL = torch.full(masked_BL.shape, -torch.inf, dtype=torch.float64)
                best_B = log_p_BL.masked_scatter(masked_BL, log_p_N).max(1)
                left_B = masked_BL.any(1)
                nats_B += torch.where(left_B, best_B.values, 0.0)
                masked_BL[rows_B, best_B.indices] = False
        return {"elbo": LikelihoodEstimate(nats_B=nats_B, tokens_B=scored_BL.sum(1), kind="lower_bound")}

    return mock.patch.object(MDLM, "log_likelihoods", bad)
