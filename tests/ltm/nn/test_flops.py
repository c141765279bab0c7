"""FLOPs: the published convention to its printed digits, and our count against operations counted by torch."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ltm.registry import preset, preset_names
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


def of_operations(name: str) -> bool:
    """True if a preset is cheap to build and its work is matrix products, not look-ups."""
    cls, chosen = preset(name)
    return chosen.trains_itself and not cls.learns_by_counting


@pytest.mark.parametrize("name", [name for name in preset_names() if of_operations(name)])
def test_counted_operations(name):
    torch.manual_seed(0)
    model = build(name, 513, "cpu")
    # How many tokens are masked is chance, spread evenly over the sequences.
    L, rng = model.block_length, SequenceRng(0, range(2 if hasattr(model.config, "latents") else 16))
    tokens = torch.randint(512, (len(rng.indices), L))
    cost = model.cost(L)
    assert model.inference_matmul in (None, "float32", "bfloat16")  # now, so that its measurement is not counted
    # The fused CPU kernel is unknown to torch's counter; its unfused twin does the same products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model.training_loss(tokens, rng=rng).value.backward()
    assert counted.get_total_flops() / tokens.numel() == pytest.approx(cost.train_flops_per_token, rel=0.02)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        model.log_likelihood(tokens, rng=rng)
    assert counted.get_total_flops() / tokens.numel() == pytest.approx(cost.score_flops_per_token, rel=0.02)


def test_inference_pays_for_no_weight_gradients():
    """At most (2T + 3) forward passes, where the published convention pays 3(T + 1)."""
    model = build("ltm-small", 50258)
    cost, steps = model.cost(1023), model.config.posterior.steps
    one_pass = cost.generate_flops_per_token
    assert cost.train_flops_per_token <= (2 * steps + 3) * one_pass
