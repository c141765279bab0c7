"""Masks with the rate integrated out: their number, positions, rate, and the weight of each token."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import beta, chisquare, kstest

from baselines.diffusion.masking import draw_masks
from ltm.rng import SequenceRng


def draws_of(scored: torch.Tensor, seed: int = 0, **options):
    rng = SequenceRng(seed, range(len(scored)))
    return draw_masks(scored, rng, **{"draws": 4, "block_length": scored.shape[1], **options})


def test_counts_are_uniform_positions_even_and_rates_beta():
    """k uniform on 1..n, all masks of k tokens alike, and the rate the k-th smallest of n uniform numbers."""
    n, B = 5, 2000
    masks = draws_of(torch.ones(B, n, dtype=torch.bool))
    masked = torch.cat([m.masked_BL for m in masks])
    rates = torch.cat([m.rate_BP for m in masks])[:, 0]
    k = masked.sum(1)
    # Stratified: each count comes up as often as it should, but for one a stratum.
    assert (torch.bincount(k, minlength=n + 1)[1:] - 4 * B / n).abs().max() <= 8
    for count in range(1, n + 1):
        chosen = masked[k == count]
        codes = torch.bincount((chosen * 2 ** torch.arange(n)).sum(1), minlength=2**n)
        possible = [code for code in range(2**n) if code.bit_count() == count]
        assert int(codes[possible].sum()) == len(chosen)
        if len(possible) > 1:
            assert chisquare(codes[possible].numpy()).pvalue > 0.001
        assert kstest(rates[k == count].numpy(), beta(count, n - count + 1).cdf).pvalue > 0.001


def test_a_text_weighs_as_many_tokens_as_it_has():
    scored = torch.rand(50, 7, generator=torch.Generator().manual_seed(0)) < 0.6
    scored[0] = False
    n = scored.sum(1)
    for masks in draws_of(scored):
        assert not (masks.masked_BL & ~scored).any()
        assert ((masks.weight_BL > 0) == masks.masked_BL).all()
        torch.testing.assert_close(masks.weight_BL.sum(1), n.double())
        torch.testing.assert_close(masks.weight_BL.max(1).values[1:], (n / masks.masked_BL.sum(1))[1:].double())
        assert masks.rate_BP[0, 0] == 1  # nothing scored, nothing masked
        assert ((masks.rate_BP > 0) & (masks.rate_BP <= 1)).all()


def test_a_block_is_a_text_of_its_own():
    """BOS counts as the first position of the first block: blocks of 3 hold 2, 3 and 3 of 8 tokens."""
    scored = torch.ones(40, 8, dtype=torch.bool)
    scored[0, 5:] = False
    counts = []
    for masks in draws_of(scored, block=3):
        assert masks.rate_BP.shape == (40, 3)
        assert masks.rate_BP[0, 2] == 1
        for block, size in ((slice(0, 2), 2), (slice(2, 5), 3), (slice(5, 8), 3)):
            n = scored[:, block].sum(1)
            torch.testing.assert_close(masks.weight_BL[:, block].sum(1), n.double())
            k = masks.masked_BL[1:, block].sum(1)
            assert ((k >= 1) & (k <= size)).all()
            counts.append(k)
    assert len(torch.stack(counts).unique(dim=0)) > 3  # blocks draw their counts apart


def test_noise_depends_on_neither_padding_nor_batch():
    scored = torch.ones(6, 9, dtype=torch.bool)
    scored[:, 5:] = False
    for long, short in zip(draws_of(scored), draws_of(scored[:, :5], block_length=9), strict=True):
        assert torch.equal(long.masked_BL[:, :5], short.masked_BL)
        assert torch.equal(long.rate_BP, short.rate_BP)
    alone = draw_masks(scored[:1], SequenceRng(0, [4]), draws=4, block_length=9)
    for whole, one in zip(draws_of(scored), alone, strict=True):
        assert torch.equal(whole.weight_BL[4:5], one.weight_BL)


def test_part_of_the_counts_for_training():
    """Shares of masked tokens from an interval only, as clipped schedules draw them."""
    masks = draws_of(torch.ones(200, 10, dtype=torch.bool), low=0.3, high=0.8)
    assert torch.stack([m.masked_BL.sum(1) for m in masks]).unique().tolist() == [4, 5, 6, 7, 8]


def test_bad_requests():
    scored = torch.ones(1, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="draws must be at least 1, found 0"):
        draws_of(scored, draws=0)
    with pytest.raises(ValueError, match="0 <= low < high <= 1"):
        draws_of(scored, low=0.5, high=0.5)
