"""The stack against textbook formulas: dense masks, explicit RoPE, decoding with and without a cache."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ltm.nn.attention import causal_attention, executed_keys, rotate, rotations
from ltm.nn.output_head import mean_nll
from ltm.nn.transformer import Transformer, TransformerConfig


def small(window: int | None = 3, cross_attention: bool = False) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(layers=2, width=16, heads=2, hidden=24, max_length=20, window=window)
    stack = Transformer(config, 11, cross_attention=cross_attention).double()
    with torch.no_grad():
        for p in stack.parameters():
            p.mul_(10 if p.ndim > 1 else 1)
    return stack.requires_grad_(False)


@pytest.mark.parametrize("window", [1, 2, 5, 8, 19, None])
@pytest.mark.parametrize("length", [1, 5, 16, 19])
def test_windowed_attention_is_the_dense_masked_one(window, length):
    q, k, v = torch.randn(3, 2, 2, length, 4, dtype=torch.float64).requires_grad_()
    i = torch.arange(length)
    offset = i[:, None] - i
    mask = (offset >= 0) & (offset < (window or length))
    dense = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    ours = causal_attention(q, k, v, window)
    torch.testing.assert_close(ours, dense)
    weights = torch.randn_like(dense)
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), (q, k, v)),
        torch.autograd.grad((dense * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_bfloat16_products_agree_with_the_fused_kernel():
    q, k, v = torch.randn(3, 2, 2, 19, 4, dtype=torch.bfloat16).requires_grad_()
    with torch.no_grad():
        fused = causal_attention(q, k, v, 5)
    torch.testing.assert_close(causal_attention(q, k, v, 5), fused, rtol=0.05, atol=0.05)


def test_rope_depends_on_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def score(i: float, j: float) -> float:
        at = rotations(torch.tensor([i, j]), 8, torch.float64)
        return float((rotate(q, at[:1]) * rotate(k, at[1:])).sum())

    assert score(3, 1) == pytest.approx(score(10, 8)) and score(3, 1) != pytest.approx(score(3, 2))
    angle = torch.tensor(5.0, dtype=torch.float64)  # the first pair turns by the position itself
    turned = rotate(
        torch.tensor([[[[1.0, 0.0]]]], dtype=torch.float64), rotations(torch.tensor([5.0]), 2, torch.float64)
    )
    torch.testing.assert_close(turned.flatten(), torch.stack([angle.cos(), angle.sin()]))


@pytest.mark.parametrize("window", [3, None])
def test_future_and_far_past_do_not_leak(window):
    stack, tokens = small(window), torch.randint(10, (1, 12))
    base = stack(tokens)
    changed = tokens.clone()
    changed[0, 6] = (tokens[0, 6] + 1) % 10
    touched = ((stack(changed) - base).abs().amax(-1) > 1e-12)[0].nonzero().flatten().tolist()
    reach = 11 if window is None else 6 + stack.config.layers * (window - 1)
    assert touched == list(range(6, min(reach, 11) + 1))


@pytest.mark.parametrize("cross_attention", [False, True])
@pytest.mark.parametrize("window", [3, None])
def test_cached_decoding_equals_one_pass(window, cross_attention):
    stack, tokens = small(window, cross_attention), torch.randint(10, (3, 12))
    latents = None
    if cross_attention:
        at = stack.rotations(torch.tensor([2.5, 7.5]))
        latents = [
            b.latent_keys_values(torch.randn(3, 2, 16, dtype=torch.float64), at, stack.dtype) for b in stack.blocks
        ]
    whole = stack(stack.with_bos(tokens), latents) @ stack.head().T
    inputs, cache = stack.with_bos(tokens), None
    for position in range(4, 12):
        new = inputs[:, : position + 1] if cache is None else inputs[:, position : position + 1]
        logits, cache = stack.decode(new, position + 1 - new.shape[1], latents, cache)
        torch.testing.assert_close(logits, whole[:, position])
    if window:
        assert all(len(layer) == window - 1 for layer in cache)  # what the next position sees, itself apart


def test_positions_in_a_row_are_looked_up():
    stack = small()
    for positions in (range(3), range(7, 9), range(200, 201)):
        torch.testing.assert_close(stack.rotations(positions), stack.rotations(torch.tensor(positions)))


def test_bos_is_an_input_but_never_an_output():
    stack = small()
    assert stack.head().shape == (10, 16)
    assert (stack.with_bos(torch.randint(10, (2, 4)))[:, 0] == 10).all()


def test_frozen_shares_what_it_does_not_cast():
    stack = small()
    same = stack.frozen(None)
    assert same.embedding.data_ptr() == stack.embedding.data_ptr()
    assert same.blocks[0].mlp_in.weight.data_ptr() == stack.blocks[0].mlp_in.weight.data_ptr()
    assert stack.frozen(torch.bfloat16).dtype == torch.float64  # float64 is for exactness: nothing lowers it
    single = stack.float().frozen(torch.bfloat16)
    assert single.blocks[0].mlp_in.weight.dtype == torch.bfloat16 and single.head().dtype == torch.bfloat16
    assert single.embedding.dtype == single.norm.weight.dtype == torch.float32
    assert not any(p.requires_grad for p in single.parameters())


def test_latents_are_read_where_there_are_any():
    stack, tokens = small(cross_attention=True), torch.randint(10, (1, 6))
    at = stack.rotations(torch.tensor([1.0]))

    def run(z):
        return stack(tokens, [b.latent_keys_values(z, at, stack.dtype) for b in stack.blocks])

    z = torch.randn(1, 1, 16, dtype=torch.float64)
    assert float((run(z) - run(z + 1)).abs().amin(-1).max()) > 1e-6


def test_executed_keys():
    assert executed_keys(100, None) == 100 and executed_keys(100, 256) == 100
    assert executed_keys(1024, 256) == 512


def bidirectional(**options) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(layers=2, width=16, heads=2, hidden=24, max_length=20, window=None)
    return Transformer(config, 11, causal=False, **options).double().requires_grad_(False)


def test_without_causality_every_position_sees_every_other():
    stack, tokens = bidirectional(), torch.randint(10, (1, 6))
    base = stack(tokens)
    for position in range(6):
        changed = tokens.clone()
        changed[0, position] = (tokens[0, position] + 1) % 10
        assert float((stack(changed) - base).abs().amax(-1).min()) > 0
    # As a set: with the positions permuted along, nothing changes but the order.
    order = torch.randperm(6)
    hidden, _ = stack.run(stack.embed(tokens[:, order]), positions_L=order)
    torch.testing.assert_close(hidden, base[:, order])


def test_hidden_positions_change_nothing():
    stack, tokens = bidirectional(), torch.randint(10, (2, 7))
    visible = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    visible[1, ..., 5:] = False
    other = tokens.clone()
    other[1, 5:] = (tokens[1, 5:] + 1) % 10
    found = stack(tokens, visible=visible)
    torch.testing.assert_close(stack(other, visible=visible)[1, :5], found[1, :5])
    torch.testing.assert_close(stack(tokens[1:, :5])[0], found[1, :5])
    torch.testing.assert_close(stack(tokens)[0], found[0])


def test_causality_is_a_mask():
    stack, tokens = small(window=None), torch.randint(10, (2, 9))
    torch.testing.assert_close(stack(tokens, visible=torch.ones(9, 9, dtype=torch.bool).tril()), stack(tokens))


def test_past_and_present_are_one_pass():
    """Clean keys once, then queries that see some of them and some of their own: what block diffusion does."""
    stack, tokens = bidirectional(), torch.randint(10, (2, 8))
    halves = stack.embed(tokens).chunk(2, 1)
    at = torch.arange(4)
    first_sees, second_sees = torch.ones(4, 4, dtype=torch.bool).tril(), torch.rand(4, 8) < 0.5
    second_sees[:, 4:] |= torch.eye(4, dtype=torch.bool)
    _, cache = stack.run(halves[0], positions_L=at, visible=first_sees)
    found, _ = stack.run(halves[1], positions_L=at, past=cache, visible=second_sees)
    mask = torch.cat([torch.cat([first_sees, torch.zeros(4, 4, dtype=torch.bool)], 1), second_sees])
    whole, _ = stack.run(torch.cat(halves, 1), positions_L=at.repeat(2), visible=mask)
    torch.testing.assert_close(found, whole[:, 4:])


def test_a_condition_starts_as_none_and_then_modulates():
    plain, stack = bidirectional(), bidirectional(condition=6)
    missing = stack.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ["blocks.0.modulation.weight", "blocks.1.modulation.weight"]
    tokens, condition = torch.randint(10, (2, 5)), torch.randn(2, 6, dtype=torch.float64)
    torch.testing.assert_close(stack(tokens, condition_BE=condition), plain(tokens))
    with torch.no_grad():
        stack.blocks[0].modulation.weight.normal_()
    changed = (stack(tokens, condition_BE=condition) - plain(tokens)).abs().amax((1, 2))
    assert (changed > 1e-3).all()
    condition[1] = 0
    torch.testing.assert_close(stack(tokens, condition_BE=condition)[1], plain(tokens)[1])


def test_extra_inputs_are_never_output():
    stack = bidirectional(extra_inputs=1)
    assert stack.embedding.shape == (12, 16) and stack.head().shape == (10, 16)
    assert stack(torch.full((1, 3), 11)).shape == (1, 3, 16)
    assert torch.equal(stack.after_bos(torch.tensor([[1, 2]])), torch.tensor([[10, 1, 2]]))
    copy = stack.frozen(None)
    torch.testing.assert_close(copy(torch.tensor([[10, 11, 2]])), stack(torch.tensor([[10, 11, 2]])))


def test_bad_shapes():
    with pytest.raises(ValueError, match="set window=none, found 4"):
        Transformer(TransformerConfig(layers=1, width=8, heads=2, hidden=8, window=4), 9, causal=False)
    good = dict(layers=1, width=8, heads=2, hidden=8)
    for bad in ({"layers": 0}, {"heads": 3}, {"width": 6}, {"max_length": 1}, {"window": 0}):
        with pytest.raises(ValueError):
            TransformerConfig(**{**good, **bad})


def test_gradients_repeat_with_several_threads():
    """A resumed run equals the unbroken one bit for bit only if no sum depends on thread order."""
    stack, tokens = small().float().requires_grad_(), torch.randint(10, (256, 12))
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        found = []
        for _ in range(6):
            loss = mean_nll(stack(stack.with_bos(tokens)), stack.head(), tokens)
            found.append(torch.autograd.grad(loss, stack.embedding)[0])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])
