"""Chunked losses and gradients against autograd on whole logits."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ltm.nn import output_head


@pytest.fixture(params=["one chunk", "many chunks", "whole rows"])
def problem(request, monkeypatch):
    """Seventy tokens, thirteen outputs; the last way is that of a GPU."""
    monkeypatch.setitem(output_head.CHUNK_BYTES, "cpu", 2**26 if request.param == "one chunk" else 8 * 600)
    monkeypatch.setattr(output_head, "keeps_rows_whole", lambda head_VD: request.param == "whole rows")
    if request.param == "many chunks":  # 13 tokens by 3 of the vocabulary: neither divides anything
        monkeypatch.setattr(output_head, "GROUP_TOKENS", 13)
        monkeypatch.setattr(output_head, "BLOCK_BYTES", 8 * 13 * 3)
    torch.manual_seed(0)
    h = torch.randn(70, 6, dtype=torch.float64, requires_grad=True)
    head = torch.randn(13, 6, dtype=torch.float64, requires_grad=True)
    return h, head, torch.randint(13, (70,)), torch.rand(70, dtype=torch.float64)


def test_token_nats(problem):
    h, head, targets, _ = problem
    torch.testing.assert_close(
        output_head.token_nats(h, head, targets), -F.cross_entropy(h @ head.T, targets, reduction="none")
    )


@pytest.mark.parametrize("tokens", [0, 1, output_head.FEW_TOKENS, output_head.FEW_TOKENS + 1])
def test_logits(tokens):
    h, head = torch.randn(tokens, 6, dtype=torch.float64), torch.randn(13, 6, dtype=torch.float64)
    found = output_head.logits_of(h, head)
    torch.testing.assert_close(found, h @ head.T)
    assert found.is_contiguous() and output_head.logits_of(h, head.float()).dtype == torch.float32


def test_gradients(problem):
    h, head, targets, weights = problem
    plain = (F.cross_entropy(h @ head.T, targets, reduction="none") * weights).sum()
    expected_h, expected_head = torch.autograd.grad(plain, (h, head))
    fused = output_head.weighted_nll(h, head, targets, weights)
    torch.testing.assert_close(fused, plain)
    got_h, got_head = torch.autograd.grad(3 * fused, (h, head))
    torch.testing.assert_close(got_h, 3 * expected_h)
    torch.testing.assert_close(got_head, 3 * expected_head)
    torch.testing.assert_close(output_head.nll_gradient(h, head, targets, weights), expected_h)


def test_logits_far_apart_neither_overflow_nor_vanish(problem, request):
    h, head, targets, _ = problem
    if "whole rows" in request.node.name:  # they are cut there
        far = output_head.nll_gradient((300 * h).detach(), head.detach(), targets)
        assert far.isfinite().all()
    h, head = ((3 if "whole rows" in request.node.name else 300) * h).detach(), head.detach()
    nats = output_head.token_nats(h, head, targets)
    torch.testing.assert_close(nats, -F.cross_entropy(h @ head.T, targets, reduction="none"))
    expected = torch.softmax(h @ head.T, -1) @ head - head[targets]
    torch.testing.assert_close(output_head.nll_gradient(h, head, targets), expected)


def test_mean_nll_in_bfloat16_is_near():
    torch.manual_seed(0)
    h, head, targets = torch.randn(4, 50, 64), torch.randn(200, 64) * 0.1, torch.randint(200, (4, 50))
    exact = F.cross_entropy((h @ head.T).flatten(0, 1), targets.flatten())
    assert float(output_head.mean_nll(h, head.bfloat16(), targets)) == pytest.approx(float(exact), rel=3e-3)
    assert float(output_head.mean_nll(h, head, targets)) == pytest.approx(float(exact), rel=1e-6)


def test_any_statistic_over_the_vocabulary(problem):
    h, head, targets, weights = problem

    def statistic(logits, target, weight):
        return (logits.gather(1, target[:, None])[:, 0] - logits.exp().sum(1)) * weight

    plain = statistic(h @ head.T, targets, weights)
    ours = output_head.over_vocabulary(statistic, h, head, targets, weights)
    torch.testing.assert_close(ours, plain)
    for got, expected in zip(
        torch.autograd.grad(ours.square().sum(), (h, head)),
        torch.autograd.grad(plain.square().sum(), (h, head)),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)
    assert output_head.over_vocabulary(statistic, h[:0], head, targets[:0], weights[:0]).shape == (0,)
    with torch.no_grad():
        torch.testing.assert_close(output_head.over_vocabulary(statistic, h, head, targets, weights), plain)
