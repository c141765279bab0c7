"""Decoding batches of prompts of any length: as few steps as possible, and each text as if it were alone."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from ltm.api import Sampling
from ltm.nn.left_to_right import batches, continue_prompts
from ltm.rng import SequenceRng


class Successors:
    """A decoder that counts its steps, and after a token t always gives t + 1."""

    vocab_size, block_length, device = 101, 200, torch.device("cpu")

    def __init__(self) -> None:
        self.steps = 0

    def decode(self, inputs_BL: Tensor, start: int, latents: Any, past: Any) -> tuple[Tensor, Any]:
        """See `Decoder.decode`; BOS is followed by 0."""
        self.steps += 1
        assert start == (0 if past is None else past) and (past is None or inputs_BL.shape[1] == 1)
        following_B = (inputs_BL[:, -1] + 1) % (self.vocab_size - 1) * (inputs_BL[:, -1] != self.vocab_size - 1)
        return 99.0 * torch.nn.functional.one_hot(following_B, self.vocab_size - 1), start + inputs_BL.shape[1]


def written(decoder: Successors, prompts: list[list[int]], new: int, **how: Any) -> list[list[int]]:
    rng, sampling = SequenceRng(0, range(len(prompts))), Sampling(temperature=0, **how)
    found = continue_prompts(decoder, prompts, lambda *_: None, max_new_tokens=new, sampling=sampling, rng=rng)
    assert found.network_evaluations == [len(text) for text in found.tokens]
    return found.tokens


def test_every_row_goes_on_from_its_own_prompt() -> None:
    decoder = Successors()
    prompts = [[7, 8, 9], [], [50], [3, 1, 20, 30], [60]]
    assert written(decoder, prompts, 3) == [[10, 11, 12], [0, 1, 2], [51, 52, 53], [31, 32, 33], [61, 62, 63]]
    assert decoder.steps == 3 + 4  # new tokens, and those between the shortest and the longest prompt


def test_a_batch_ends_when_all_its_rows_have() -> None:
    for prompts, stop_ids, texts, steps in (
        ([[1], [5, 6], [5, 6, 7]], (8,), [[2, 3, 4, 5, 6, 7, 8], [7, 8], [8]], 7),
        ([[5], [5, 6, 7]], (8,), [[6, 7, 8], [8]], 3),
        ([[5, 6, 7], [5]], (50,), [[8, 9, 10, 11, 12, 13, 14, 15, 16, 17], [6, 7, 8, 9, 10, 11, 12, 13, 14, 15]], 12),
        # A token of a prompt stops nothing.
        ([[1], [8, 3, 4, 8, 5]], (8,), [[2, 3, 4, 5, 6, 7, 8], [6, 7, 8]], 7),
    ):
        decoder = Successors()
        assert written(decoder, prompts, 10, stop_ids=stop_ids) == texts
        assert decoder.steps == steps


def test_far_apart_prompts_are_not_decoded_together() -> None:
    decoder = Successors()
    assert written(decoder, [[1] * 150, [2]], 2) == [[2, 3], [3, 4]]
    assert decoder.steps == 4


@pytest.mark.parametrize("new", [1, 3, 10])
def test_no_way_to_cut_has_fewer_steps(new: int) -> None:
    chance = random.Random(0)
    for _ in range(30):
        lengths = [chance.randint(0, 30) for _ in range(chance.randint(1, 7))]
        ours = batches(lengths, new)
        assert sorted(itertools.chain(*ours)) == list(range(len(lengths)))

        def steps(parts: list[list[int]]) -> int:
            return sum(max(part) - min(part) + new for part in parts)

        ordered = sorted(lengths)
        ways = []
        for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
            places = [0, *(n for n, cut in enumerate(cuts, 1) if cut), len(lengths)]
            ways.append([ordered[a:b] for a, b in itertools.pairwise(places)])
        assert steps([[lengths[row] for row in part] for part in ours]) == min(map(steps, ways))
