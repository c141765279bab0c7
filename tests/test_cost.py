"""FLOPs: the published convention to its printed digits, and our count against operations counted by torch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ltm.registry import preset
from ltm.rng import SequenceRng


def build(name: str, vocab_size: int, device: str = "meta"):
    cls, chosen = preset(name)
    with torch.device(device):
        return cls(dataclasses.replace(chosen.config, vocab_size=vocab_size))


@pytest.mark.parametrize(("name", "printed"), [("ltm-small", "4.07"), ("ltm-medium", "5.52"), ("ltm-large", "32.2")])
def test_published_training_flops(name, printed):
    billions = build(name, 50258).cost(1023).paper_train_flops_per_token / 1e9
    assert f"{billions:.{len(printed.split('.')[1])}f}" == printed


def test_autoregressive_convention():
    assert build("ar-large", 50258).cost(1023).paper_train_flops_per_token == 6 * 76_342_784 + 12 * 16 * 512 * 1024


@pytest.mark.parametrize("name", ["ltm-tiny", "ar-tiny"])
def test_counted_operations(name):
    torch.manual_seed(0)
    model = build(name, 513, "cpu")
    L, rng = model.block_length, SequenceRng(0, range(2))
    tokens = torch.randint(512, (2, L))
    cost = model.cost(L)
    # The fused CPU kernel is unknown to torch's counter; its unfused twin does the same products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model.training_loss(tokens, rng=rng).value.backward()
    assert counted.get_total_flops() / tokens.numel() == pytest.approx(cost.train_flops_per_token, rel=0.02)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model.log_likelihood(tokens, rng=rng)
    assert counted.get_total_flops() / tokens.numel() == pytest.approx(cost.score_flops_per_token, rel=0.02)


def test_inference_pays_for_no_weight_gradients():
    """(2T + 3) forward passes or less, where the published convention pays 3(T + 1)."""
    model = build("ltm-small", 50258)
    cost, steps = model.cost(1023), model.config.posterior.steps
    one_pass = cost.generate_flops_per_token
    assert cost.train_flops_per_token <= (2 * steps + 3) * one_pass
