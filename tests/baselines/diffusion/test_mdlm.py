"""MDLM's bound against an enumeration of all masks, and the settings that its configuration refuses."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import numpy as np
import pytest
import torch

from baselines.diffusion.mdlm import MDLM
from ltm.api import Sampling
from ltm.config import with_settings
from ltm.errors import UserError
from ltm.rng import SequenceRng
from ltm.testing.miniatures import L, V, all_texts, train_briefly


@functools.cache
def model_of(length: int, updates: int) -> MDLM:
    """A miniature in float64, random or a little trained; its weights enlarged so that it is far from uniform."""
    torch.manual_seed(0)
    model = MDLM(MDLM.miniature(V + 1, length)).double()
    with torch.no_grad():
        model.decoder.embedding.mul_(10)
    if updates:
        train_briefly(model, updates)
    return model.eval().requires_grad_(False)


def all_masks(length: int) -> torch.Tensor:
    """Every mask of at least one token, (2^length - 1, length)."""
    return torch.tensor(list(itertools.product((False, True), repeat=length)))[1:]


def costs(model: MDLM, text: torch.Tensor) -> torch.Tensor:
    """Sum over the masked tokens of -log p(token | rest), for each mask of `all_masks`; no code of the bound."""
    masks = all_masks(len(text))
    bos = torch.full((len(masks), 1), model.vocab_size - 1)
    inputs = torch.cat([bos, text.expand(len(masks), -1).masked_fill(masks, model.mask_id)], 1)
    logits = model.decoder(inputs)[:, 1:] @ model.decoder.embedding[: model.vocab_size - 1].T
    picked = -logits.log_softmax(-1).gather(2, text.expand(len(masks), -1)[..., None])[..., 0]
    return (picked * masks).sum(1)


def exact_bound(model: MDLM, text: torch.Tensor) -> float:
    """The continuous-time bound on log p in nats: a mask of k of n tokens weighs B(k, n - k + 1)."""
    n, k = len(text), all_masks(len(text)).sum(1).double()
    weights = torch.exp(torch.lgamma(k) + torch.lgamma(n - k + 1) - math.lgamma(n + 1))
    return -float((weights * costs(model, text)).sum())


def test_draws_agree_with_all_masks_enumerated():
    model, rows = model_of(6, 0), 200
    for text in torch.tensor([[0, 1, 2, 2, 1, 0], [1, 1, 1, 0, 1, 1]]):
        texts = text.expand(rows, -1)
        means = torch.stack(
            [model.log_likelihood(texts, rng=SequenceRng(seed, range(rows))).nats_B.mean() for seed in range(40)]
        )
        error = float(means.std()) / math.sqrt(len(means))
        exact = exact_bound(model, text)
        assert abs(float(means.mean()) - exact) < 4 * error, (float(means.mean()), exact, error)
        assert error < 0.005 * abs(exact)


def test_is_the_textbook_bound():
    """t uniform, each token masked with probability t, weight 1/t: its mean by quadrature, and by drawing."""
    model, text = model_of(6, 0), torch.tensor([2, 0, 1, 1, 0, 2])
    cost, masks = costs(model, text), all_masks(6)
    k, exact = masks.sum(1).double(), exact_bound(model, text)
    points, weights = (torch.tensor(x) for x in np.polynomial.legendre.leggauss(8))
    integral = sum(
        w / 2 * (t ** (k - 1) * (1 - t) ** (6 - k) * cost).sum() for t, w in zip((points + 1) / 2, weights, strict=True)
    )
    assert -float(integral) == pytest.approx(exact, rel=1e-12)
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(400_000, 1, generator=generator, dtype=torch.float64)
    masked = torch.rand(len(t), 6, generator=generator, dtype=torch.float64) < t
    code = (masked * 2 ** torch.arange(5, -1, -1)).sum(1)  # the row of `all_masks`, less one
    drawn = -torch.cat([torch.zeros(1), cost])[code] / t[:, 0]
    assert abs(float(drawn.mean()) - exact) < 4 * float(drawn.std()) / math.sqrt(len(t))


def test_total_mass_of_the_exact_bound():
    """V=3, L=4, trained, every mask of every text: the bounds sum to at most 1, and not to little."""
    model = model_of(L, 150)
    mass = sum(math.exp(exact_bound(model, text)) for text in all_texts())
    assert 0.5 < mass <= 1 + 1e-9


def test_context_and_padding():
    """Given tokens are seen and not scored, padding is neither: by enumeration of the text alone."""
    model = model_of(6, 0)
    text = torch.tensor([1, 2, 0, 2, 1, 0])
    rows = 400
    rng = SequenceRng(3, range(rows))
    found = model.log_likelihood(text.expand(rows, -1), rng=rng, context=2, lengths=torch.full((rows,), 5))
    assert (found.tokens_B == 3).all()
    # All masks of the middle three, of a text of five.
    masks, cost, exact = all_masks(5), costs(model, text[:5]), 0.0
    for mask, nll in zip(masks, cost.tolist(), strict=True):
        if not mask[:2].any():
            k = int(mask.sum())
            exact -= math.gamma(k) * math.gamma(4 - k) / math.gamma(4) * nll
    error = float(found.nats_B.std()) / math.sqrt(rows)
    assert abs(float(found.nats_B.mean()) - exact) < 4 * error
    other = text.clone()
    other[5] = 2
    again = model.log_likelihood(other.expand(rows, -1), rng=rng, context=2, lengths=torch.full((rows,), 5))
    assert torch.equal(found.nats_B, again.nats_B)
    cut = model.log_likelihood(text[:5].expand(rows, -1), rng=rng, context=2)
    torch.testing.assert_close(cut.nats_B, found.nats_B, rtol=0, atol=1e-12)


def test_training_loss_is_the_bound():
    """The same masks under the same rng, so the same number; and a gradient to every weight, the mask's row too."""
    torch.manual_seed(0)
    model = MDLM(MDLM.miniature(V + 1, L)).double()
    texts, rng = all_texts(), SequenceRng(5, range(V**L))
    loss = model.training_loss(texts, rng=rng).value
    loss.backward()
    bound = model.log_likelihood(texts, rng=rng, draws=1)
    assert loss.item() == pytest.approx(-float(bound.nats_B.sum()) / texts.numel(), abs=1e-12)
    assert bound.mc_var_B is None
    for name, weight in model.named_parameters():
        rows = weight.grad.abs().flatten(1).sum(1) if weight.ndim > 1 else weight.grad.abs()
        assert (rows > 0).any(), name
    assert (model.decoder.embedding.grad.abs().sum(1) > 0).all()


def test_mask_and_bos_are_no_text():
    model = model_of(L, 0)
    for bad in (V, model.mask_id):
        with pytest.raises(ValueError, match=f"token id {bad} is outside"):
            model.log_likelihood(torch.tensor([[0, bad, 1, 1]]), rng=SequenceRng(0, [0]))
        with pytest.raises(ValueError, match=f"token id {bad} is outside"):
            model.generate([[0, bad]], max_new_tokens=1, sampling=Sampling(), rng=SequenceRng(0, [0]))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sampling_steps=0", "sampling_steps must be at least 1, found 0"),
        ("sampling_steps=-3", "sampling_steps must be at least 1, found -3"),
        ("stride=0", r"stride must be in 1\.\.127"),
        ("stride=128", r"stride must be in 1\.\.127"),
        ("sampler=first-hitting", "did you mean first_hitting"),
        ("decoder.window=32", "set decoder.window=none, found 32"),
    ],
)
def test_bad_settings(setting, message):
    with pytest.raises(UserError, match=message):
        with_settings(MDLM.presets["mdlm-tiny"].config, [setting])


def test_samplers_change_neither_weights_nor_scores():
    torch.manual_seed(0)
    model = MDLM(MDLM.miniature(V + 1, L)).double()
    other = MDLM(dataclasses.replace(model.config, sampler="cached", sampling_steps=3, stride=1)).double()
    other.load_state_dict(model.state_dict())
    rng = SequenceRng(0, range(V**L))
    found = [m.log_likelihood(all_texts(), rng=rng).nats_B for m in (model, other)]
    assert torch.equal(*found)
