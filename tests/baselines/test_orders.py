"""The mixture over orders, by enumeration of all texts and all orders: V = 3, L = 4."""

from __future__ import annotations

import itertools

import pytest
import torch

from baselines import orders
from baselines.diffusion.mdlm import MDLM, MDLMConfig
from ltm.nn.transformer import TransformerConfig
from ltm.rng import SequenceRng

V, L = 3, 4
TEXTS = torch.tensor(list(itertools.product(range(V), repeat=L)))
ALL_ORDERS = torch.tensor(list(itertools.permutations(range(L))))


@pytest.fixture(scope="module")
def model() -> MDLM:
    """Untrained weights, made large, so that orders differ."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        decoder = TransformerConfig(layers=1, width=16, heads=2, hidden=32, max_length=L + 1, window=None)
        model = MDLM(MDLMConfig(vocab_size=V + 1, decoder=decoder, orders=64)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    return model


def in_order(model: MDLM, texts_BL: torch.Tensor, scored_BL: torch.Tensor, order_KBL: torch.Tensor) -> torch.Tensor:
    """`log_likelihoods_in_order` of the model."""
    with torch.no_grad():
        return orders.log_likelihoods_in_order(
            model.predict, texts_BL, scored_BL, order_KBL, model.mask_id, outputs=model.vocab_size - 1
        )


def exact(model: MDLM) -> torch.Tensor:
    """log p of each text, over all orders."""
    every_KBL = ALL_ORDERS[:, None].expand(-1, len(TEXTS), -1)
    return in_order(model, TEXTS, torch.ones_like(TEXTS, dtype=torch.bool), every_KBL)


def test_each_order_and_their_mixture_are_distributions(model):
    log_p_KB = exact(model)
    assert torch.allclose(log_p_KB.exp().sum(1), torch.ones(24, dtype=torch.float64))
    assert float(log_p_KB.std(0).mean()) > 0.1, "orders must differ"


def test_the_order_from_left_to_right_is_the_rule_of_that_name(model):
    config = MDLMConfig(vocab_size=V + 1, decoder=model.config.decoder, unmasking="left_to_right")
    ruled = MDLM(config).double()
    ruled.load_state_dict(model.state_dict())
    duel = ruled.log_likelihoods(TEXTS, rng=SequenceRng(0, range(len(TEXTS))))["duel_left_to_right"]
    assert torch.allclose(duel.nats_B, exact(model)[ALL_ORDERS.tolist().index([0, 1, 2, 3])])


def test_the_nelbo_is_the_mean_over_orders(model):
    """Σ_k (1/k) E_k[sum over masks] is E over orders of log p(x | order)."""
    estimate = model.log_likelihoods(TEXTS, rng=SequenceRng(1, range(len(TEXTS))), draws=512, only="elbo")["elbo"]
    error_B = (estimate.nats_B - exact(model).mean(0)) / estimate.mc_var_B.sqrt()
    assert float(error_B.abs().max()) < 4.5


@pytest.mark.parametrize("seed", range(3))
def test_the_truth_lies_between_the_bounds(model, seed):
    log_p_B = exact(model).logsumexp(0) - torch.tensor(24.0).log()
    found = model.log_likelihoods(TEXTS, rng=SequenceRng(seed, range(len(TEXTS))))
    assert list(found) == ["elbo", "order_importance_bound", "order_upper_bound"]
    lower, upper = found["order_importance_bound"], found["order_upper_bound"]
    assert (lower.kind, upper.kind, lower.draws, upper.draws) == ("lower_bound", "upper_bound", 64, 64)
    assert bool((lower.nats_B <= log_p_B + 4.5 * lower.mc_var_B.sqrt()).all())
    assert bool((upper.nats_B >= log_p_B - 4.5 * upper.mc_var_B.sqrt()).all())
    # On all texts together errors average out.
    nelbo, truth = float(exact(model).mean(0).sum()), float(log_p_B.sum())
    errors = [4.5 * float(bound.mc_var_B.sum().sqrt()) for bound in (lower, upper)]
    assert nelbo < float(lower.nats_B.sum()) < truth + errors[0]
    assert truth - errors[1] < float(upper.nats_B.sum()) < truth + errors[1] + 0.2 * (truth - nelbo)


def test_given_tokens_are_shown_and_padding_changes_nothing(model):
    texts_BL, lengths, rng = TEXTS[[5, 40, 70]], torch.tensor([4, 3, 2]), SequenceRng(0, range(3))
    found = model.log_likelihoods(texts_BL, context=1, lengths=lengths, rng=rng)
    for row, length in enumerate(lengths.tolist()):
        alone = model.log_likelihoods(texts_BL[row : row + 1, :length], context=1, rng=SequenceRng(0, [row]))
        for name in ("order_importance_bound", "order_upper_bound"):
            assert float(found[name].nats_B[row]) == pytest.approx(float(alone[name].nats_B[0]))
            assert int(found[name].tokens_B[row]) == length - 1
    # One token after one given token has one order, and nothing to bound.
    last = model.log_likelihoods(TEXTS[:3, :2], context=1, rng=SequenceRng(0, range(3)))
    for bound in ("elbo", "order_upper_bound"):
        assert torch.allclose(last["order_importance_bound"].nats_B, last[bound].nats_B)


def test_only_what_is_asked_for_is_computed(model):
    rng = SequenceRng(0, range(len(TEXTS)))
    every = model.log_likelihoods(TEXTS, rng=rng)
    for name, estimate in every.items():
        (alone,) = model.log_likelihoods(TEXTS, rng=rng, only=name).items()
        assert alone[0] == name and torch.equal(alone[1].nats_B, estimate.nats_B)


def test_a_rule_has_no_orders_to_draw(model):
    with pytest.raises(ValueError, match="one order of each text"):
        MDLMConfig(vocab_size=4, decoder=model.config.decoder, unmasking="margin", orders=4)
    with pytest.raises(ValueError, match="at least 0"):
        MDLMConfig(vocab_size=4, decoder=model.config.decoder, orders=-1)
