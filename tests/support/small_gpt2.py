"""Random networks of the transformers package, saved to disk as published weights are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ltm import tokenizer
from tests.support.miniature_runs import text


def save_network(directory: Path, shape: Any) -> None:
    """Save a network of that shape with random weights."""
    import transformers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = transformers.AutoModelForCausalLM.from_config(shape)
        # Initial weights are so small that all predictions are alike.
        for p in network.parameters():
            if p.ndim > 1:
                p.data.normal_(std=0.3)
    network.save_pretrained(directory)


def save_gpt2(directory: Path) -> Path:
    """Save a GPT-2 with two layers, a tied head, and a byte-level BPE of 280 tokens with EOS last."""
    import transformers

    shape = transformers.GPT2Config(
        vocab_size=280, n_positions=33, n_embd=16, n_layer=2, n_head=2, bos_token_id=279, eos_token_id=279
    )
    save_network(directory, shape)
    tokenizer.build("bpe-280", documents=text(400)).save(directory)
    return directory
