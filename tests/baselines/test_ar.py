"""The AR control's number against a plain loop over its logits."""

from __future__ import annotations

import torch

from baselines.ar import Autoregressive
from ltm.rng import SequenceRng


def test_agrees_with_a_plain_loop_over_logits():
    torch.manual_seed(0)
    model = Autoregressive(Autoregressive.miniature(9, 14)).eval()
    tokens = torch.randint(8, (3, 14))
    found = model.log_likelihood(tokens, rng=SequenceRng(0, range(3)))
    with torch.no_grad():
        for row, expected in zip(tokens, found.nats_B, strict=True):
            total = 0.0
            for n in range(14):
                inputs = torch.tensor([[8, *row[:n].tolist()]])  # BOS, then the past
                logits = model.decoder(inputs)[0, -1].double() @ model.decoder.embedding[:8].double().T
                total += float(logits.log_softmax(0)[row[n]])
            assert abs(total - float(expected)) < 1e-6 * abs(total)
