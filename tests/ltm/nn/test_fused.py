"""Functions with hand-written gradients against the compositions that they equal."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ltm.nn import fused
from ltm.nn.attention import attend, rotate, rotations

F64 = torch.float64


def agree(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor) -> None:
    """Equal values, with autograd and without, and equal gradients of everything that requires one."""
    found = []
    for function in (ours, theirs):
        leaves = [x.detach().requires_grad_() for x in inputs]
        value = function(*leaves)
        torch.manual_seed(1)
        found.append((value, *torch.autograd.grad((value * torch.randn_like(value)).sum(), leaves)))
    with torch.no_grad():
        torch.testing.assert_close(ours(*inputs), found[0][0], rtol=1e-9, atol=1e-12)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_rms_norm() -> None:
    agree(fused.rms_norm, lambda x, w: F.rms_norm(x, (6,), w, 1e-5), randn(2, 3, 6), randn(6))


def test_norm_linear() -> None:
    def plain(x: Tensor, norm: Tensor, weight: Tensor) -> Tensor:
        return F.linear(F.rms_norm(x, (6,), norm, 1e-5), weight)

    agree(lambda x, n, w: fused.norm_linear(x, n, w, F64), plain, randn(2, 3, 6), randn(6), randn(5, 6))


@pytest.mark.parametrize("wanted", [(True, False, False), (False, False, True), (False, True, False)])
def test_norm_linear_forms_the_gradients_that_are_wanted(wanted: tuple[bool, ...]) -> None:
    inputs = [randn(4, 6), randn(6), randn(5, 6)]
    whole = [x.clone().requires_grad_() for x in inputs]
    some = [x.clone().requires_grad_(want) for x, want in zip(inputs, wanted, strict=True)]
    for leaves in (whole, some):
        fused.norm_linear(leaves[0], leaves[1], leaves[2], F64).square().sum().backward()
    for one, other, want in zip(some, whole, wanted, strict=True):
        assert (one.grad is not None) == want
        if want:
            torch.testing.assert_close(one.grad, other.grad)


def test_norm_linear_multiplies_in_the_dtype_that_is_asked_for() -> None:
    x, norm, weight = randn(4, 6).float(), randn(6).float(), randn(5, 6).float().requires_grad_()
    out = fused.norm_linear(x, norm, weight, torch.bfloat16)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32


def test_swiglu() -> None:
    def plain(x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return F.silu(gate) * up

    agree(fused.swiglu, plain, randn(2, 3, 8))


@pytest.mark.parametrize(("parts", "rotated"), [(3, 2), (2, 1), (1, 1)])
def test_rotated_heads(parts: int, rotated: int) -> None:
    heads, channels, length = 3, 4, 5
    at = rotations(torch.arange(length), channels, F64)

    def plain(x: Tensor) -> Tensor:
        split = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in x.chunk(parts, -1)]
        return torch.stack([rotate(part, at) if n < rotated else part for n, part in enumerate(split)])

    def ours(x: Tensor) -> Tensor:
        return torch.stack(fused.rotated_heads(x, at, heads, rotated=rotated))

    agree(ours, plain, randn(2, length, parts * heads * channels))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_by_products(masked: bool) -> None:
    mask = torch.rand(5, 7) < 0.6
    mask[:, 0] = True

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask if masked else None)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, mask if masked else None)

    agree(ours, plain, randn(2, 3, 5, 4), randn(2, 3, 7, 4), randn(2, 3, 7, 4))
