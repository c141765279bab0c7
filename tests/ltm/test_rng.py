"""Noise that depends on seed, sequence index and purpose, and on nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ltm.rng import SequenceRng, SplitNoise, seed_of

CODE = """
import torch
from ltm.rng import SequenceRng, seed_of
print(seed_of("a", 1, None))
print(SequenceRng(3, [5, 2**40]).stream("fit").normal(4).tolist())
print(SequenceRng(3, [5]).stream("tokens").uniform(2).tolist())
"""


def test_batch_and_order_change_nothing() -> None:
    together = SequenceRng(7, range(6)).stream("fit")
    first, second = together.normal(2, 3), together.normal(2, 3)
    for index in (4, 0, 5):
        alone = SequenceRng(7, [index]).stream("fit")
        assert torch.equal(alone.normal(2, 3)[0], first[index])
        assert torch.equal(alone.normal(2, 3)[0], second[index])
    turned = SequenceRng(7, reversed(range(6))).stream("fit")
    assert torch.equal(turned.normal(2, 3), first.flip(0))
    assert torch.equal(SequenceRng(7, range(6)).select([3, 1]).stream("fit").normal(2, 3), first[[3, 1]])


def test_a_new_process_draws_the_same_numbers() -> None:
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
    assert found.splitlines() == [
        str(seed_of("a", 1, None)),
        str(SequenceRng(3, [5, 2**40]).stream("fit").normal(4).tolist()),
        str(SequenceRng(3, [5]).stream("tokens").uniform(2).tolist()),
    ]


def test_seeds_indices_and_purposes_are_independent() -> None:
    draws = [
        SequenceRng(seed, [index]).stream(purpose).normal(2000)[0]
        for seed in (0, 1)
        for index in (0, 1)
        for purpose in ("fit", "fit 1")
    ]
    correlations = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlations.abs().max() < 5 / 2000**0.5


def test_asking_again_starts_afresh() -> None:
    rng = SequenceRng(1, [0, 1])
    assert torch.equal(rng.stream("a").normal(3), rng.stream("a").normal(3))
    stream = rng.stream("a")
    assert not torch.equal(stream.normal(3), stream.normal(3))


def test_moments_and_ranges() -> None:
    normal = SequenceRng(0, range(20)).stream("x").normal(1000)
    assert normal.mean().abs() < 0.03 and (normal.std() - 1).abs() < 0.03
    uniform = SequenceRng(0, range(20)).stream("x").uniform(1000)
    assert uniform.dtype == torch.float64 and 0 <= uniform.min() and uniform.max() < 1
    assert (uniform.mean() - 0.5).abs() < 0.01


def test_uniform_numbers_drawn_at_once_are_those_drawn_in_turn() -> None:
    one_by_one, at_once = (SequenceRng(1, [3, 4]).stream("tokens") for _ in range(2))
    assert torch.equal(torch.stack([one_by_one.uniform() for _ in range(50)], 1), at_once.uniform(50))


def test_dtype_changes_the_spelling_and_not_the_noise() -> None:
    def draw(dtype: torch.dtype) -> torch.Tensor:
        return SequenceRng(2, [9]).stream("x").normal(50, dtype=dtype)

    assert draw(torch.float64).dtype == torch.float64
    assert torch.equal(draw(torch.float64), draw(torch.float32).double())
    assert torch.equal(draw(torch.bfloat16), draw(torch.float32).bfloat16())


def test_from_a_torch_generator() -> None:
    generator = torch.Generator().manual_seed(4)
    first, second = SequenceRng.of(generator, 3), SequenceRng.of(generator, 3)
    assert first.indices == [0, 1, 2] and first.seed != second.seed
    assert SequenceRng.of(torch.Generator().manual_seed(4), 3).seed == first.seed
    assert SequenceRng.of(first, 3) is first
    with pytest.raises(ValueError, match="rng has 3 sequence indices for a batch of 2"):
        SequenceRng.of(first, 2)


def test_seeds_tell_parts_apart() -> None:
    seeds = {seed_of(*parts) for parts in [("a", "b"), ("ab",), ("a", "b", ""), (1,), ("1",), (1, 2), (12,), ()]}
    assert len(seeds) == 8 and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of("order", 0, 0) == seed_of("order", 0, 0)


@pytest.mark.parametrize(("draws", "points"), [(1, 1), (3, 1), (4, 1), (4, 8)])
def test_stratified_numbers_are_uniform_over_seeds(draws: int, points: int) -> None:
    found = torch.stack([SequenceRng(seed, [3, 2**33 + 1]).stratified("t", draws, points) for seed in range(2000)])
    assert found.shape == (2000, draws, 2, points) and float(found.min()) >= 0 and float(found.max()) < 1
    for moment in (1, 2, 3):  # the mean over draws of u^k estimates 1 / (k + 1) without bias
        values = found.pow(moment).mean(1).flatten(1)[:, 0]
        assert abs(float(values.mean()) - 1 / (moment + 1)) < 4 * float(values.std()) / 2000**0.5 + 1e-12


def test_stratified_numbers_fill_the_interval() -> None:
    """The largest gap of n points is a few 1/n; that of independent ones would be log(n)/n."""
    blocks, draws = 500, 4
    for first in (0, 5 << 32):
        found = SequenceRng(0, range(first, first + blocks)).stratified("t", draws).flatten().sort().values
        assert float(found.diff().max()) < 4 / found.numel()
        assert abs(float(found.square().mean()) - 1 / 3) < 1e-3
    texts = SequenceRng(0, [n << 32 for n in range(blocks)]).stratified("t", 1).flatten().sort().values
    assert float(texts.diff().max()) < 4 / blocks


def test_stratified_draws_mirror_and_do_not_depend_on_the_batch() -> None:
    whole = SequenceRng(4, range(9)).stratified("t", 6, 2)
    assert torch.equal(whole[:, 4:6], SequenceRng(4, [4, 5]).stratified("t", 6, 2))
    torch.testing.assert_close(whole[0::2] + whole[1::2], torch.ones(3, 9, 2, dtype=torch.float64))
    assert (whole[0::2].sort(0).values.mul(6).floor() == torch.arange(3)[:, None, None]).all()


def test_latents_apart_from_tokens() -> None:
    rng, same = SplitNoise(3, [5, 6], [9, 9]), SplitNoise(3, [5, 6], [5, 6])
    tokens, latents = (rng.stream(purpose).uniform(4) for purpose in ("tokens", "z 0"))
    assert torch.equal(tokens, SequenceRng(3, [5, 6]).stream("tokens").uniform(4))
    assert torch.equal(latents, SequenceRng(3, [9, 9]).stream("z 0").uniform(4))
    assert torch.equal(rng.select([1]).stream("tokens").uniform(4), tokens[1:])
    assert torch.equal(rng.select([1]).stream("z 0").uniform(4), latents[1:])
    assert torch.equal(same.stream("z 0").uniform(4), SequenceRng(3, [5, 6]).stream("z 0").uniform(4))
