"""Block diffusion against its literal definition, with masks and orders enumerated; blocks of one and all positions."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import pytest
import torch
from scipy.stats import chisquare
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from baselines.diffusion.bd3lm import BD3LM, BD3LMConfig
from baselines.diffusion.block_sampling import evaluate
from baselines.diffusion.masking import draw_masks
from baselines.diffusion.mdlm import MDLM, MDLMConfig
from benchmarks import clipping_search
from ltm.api import Sampling
from ltm.nn.cache import KeyValueCache
from ltm.nn.transformer import TransformerConfig
from ltm.rng import SequenceRng
from ltm.testing.miniatures import V, all_texts, structured_batch

BOS, MASK = V, V + 1


def decoder(positions: int) -> TransformerConfig:
    return TransformerConfig(layers=2, width=8, heads=2, hidden=16, max_length=positions, window=None)


def untrained(size: int, positions: int, **settings) -> BD3LM:
    torch.manual_seed(0)
    config = BD3LMConfig(vocab_size=V + 1, decoder=decoder(positions), block_size=size, **settings)
    model = BD3LM(config).double().eval()
    with torch.no_grad():  # far from uniform, so that a wrong mask or position shows
        model.decoder.embedding.mul_(40)
    return model


@functools.cache
def trained(size: int, positions: int) -> BD3LM:
    """Far from uniform, by plain Adam on texts whose tokens mostly agree; shared, so no test may change it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BD3LM(BD3LMConfig(vocab_size=V + 1, decoder=decoder(positions), block_size=size)).double()
    generator, adam = torch.Generator().manual_seed(0), torch.optim.Adam(model.parameters(), lr=0.03)
    for _ in range(50):
        adam.zero_grad()
        texts = structured_batch(generator, 32)[:, : positions - 1]
        model.training_loss(texts, rng=generator).value.backward()
        adam.step()
    return model.eval().requires_grad_(False)


@torch.no_grad()
def log_p(model: BD3LM, inputs: torch.Tensor) -> torch.Tensor:
    """log p at every position, from one uncached pass over whole blocks in which each sees itself and all before."""
    block = torch.arange(inputs.shape[1]) // model.config.block_size
    h, _ = model.decoder.run(model.decoder.embed(inputs), visible=block[:, None] >= block)
    return (h @ model.decoder.head().T).log_softmax(-1)


def canvas(model: BD3LM, texts: torch.Tensor, block: int, masked: tuple[int, ...]) -> torch.Tensor:
    """BOS and text up to the end of a block, with masks at some positions and after the end of the text."""
    end = (block + 1) * model.config.block_size
    with_bos = torch.cat([torch.full((len(texts), 1), BOS), texts], 1)[:, :end]
    inputs = torch.full((len(texts), end), MASK)
    inputs[:, : with_bos.shape[1]] = with_bos
    inputs[:, list(masked)] = MASK
    return inputs


def blocks_of(model: BD3LM, length: int, context: int) -> list[tuple[int, list[int]]]:
    """Each block with scored positions, and those."""
    by_block: dict[int, list[int]] = {}
    for position in range(context + 1, length + 1):
        by_block.setdefault(position // model.config.block_size, []).append(position)
    return list(by_block.items())


def enumerated_bound(model: BD3LM, texts: torch.Tensor, context: int = 0) -> torch.Tensor:
    """Sum over blocks and over all their masks of k tokens of sum_masked log p / (k C(n, k))."""
    total = torch.zeros(len(texts), dtype=torch.float64)
    for block, scored in blocks_of(model, texts.shape[1], context):
        for k in range(1, len(scored) + 1):
            for masked in itertools.combinations(scored, k):
                found = log_p(model, canvas(model, texts, block, masked))
                for position in masked:
                    nats = found[:, position].gather(1, texts[:, position - 1 : position])[:, 0]
                    total += nats / (k * math.comb(len(scored), k))
    return total


def enumerated_law(model: BD3LM, texts: torch.Tensor, context: int = 0) -> torch.Tensor:
    """p of revealing each block after the other, its tokens one at a time in a uniformly random order."""
    total = torch.ones(len(texts), dtype=torch.float64)
    for block, wanted in blocks_of(model, texts.shape[1], context):
        law = torch.zeros(len(texts), dtype=torch.float64)
        orders = list(itertools.permutations(wanted))
        for order in orders:
            nats = torch.zeros(len(texts), dtype=torch.float64)
            for step, position in enumerate(order):
                found = log_p(model, canvas(model, texts, block, order[step:]))
                nats += found[:, position].gather(1, texts[:, position - 1 : position])[:, 0]
            law += nats.exp() / len(orders)
        total *= law
    return total


def test_two_passes_are_the_published_pass_over_both_texts():
    """2N positions, 2N x 2N mask: masked to masked in the block, to clean before it; clean to clean up to it."""
    model, N, S = untrained(4, 12), 12, 4
    inputs = torch.cat([torch.full((5, 1), BOS), torch.randint(V, (5, N - 1))], 1)
    masked = torch.rand(5, N) < 0.5
    masked[:, 0] = False
    block = torch.arange(N) // S
    same, earlier = block[:, None] == block, block[:, None] > block
    mask = torch.cat([torch.cat([same, earlier], 1), torch.cat([torch.zeros_like(same), same | earlier], 1)])
    both = torch.cat([inputs.masked_fill(masked, MASK), inputs], 1)
    positions = torch.arange(N).repeat(2)
    published, _ = model.decoder.run(model.decoder.embed(both), positions_L=positions, visible=mask)
    ours = model.masked_pass(inputs, masked[:, 1:], model.clean_pass(inputs))
    torch.testing.assert_close(ours, published[:, :N][masked], rtol=0, atol=1e-12)


def test_blocks_of_one_are_an_autoregressive_model():
    model, texts = trained(1, 5), all_texts(V, 4)
    found = model.log_likelihoods(texts, rng=SequenceRng(0, range(len(texts))))
    assert list(found) == ["exact"] == [model.headline()]
    exact = found["exact"]
    assert (exact.kind, exact.draws, exact.mc_var_B) == ("exact", 0, None)
    assert float(exact.nats_B.exp().sum()) == pytest.approx(1, abs=1e-9)
    with torch.no_grad():
        for row in range(0, len(texts), 11):
            total = 0.0
            for n, token in enumerate(texts[row].tolist()):
                inputs = torch.tensor([[BOS, *texts[row, :n].tolist(), MASK]])
                causal = torch.ones(n + 2, n + 2, dtype=torch.bool).tril()
                h, _ = model.decoder.run(model.decoder.embed(inputs), visible=causal)
                total += float((h[0, -1] @ model.decoder.head().T).log_softmax(0)[token])
            assert total == pytest.approx(float(exact.nats_B[row]), abs=1e-6)


def test_one_block_is_mdlm():
    """On full blocks; where a text ends early, MDLM's canvas ends with it, and here masks remain."""
    model = untrained(12, 12)
    other = MDLM(MDLMConfig(vocab_size=V + 1, decoder=decoder(12))).double().eval()
    other.load_state_dict(model.state_dict())
    texts, rng = torch.randint(V, (6, 11)), SequenceRng(3, range(6))
    ours, theirs = (m.log_likelihood(texts, rng=rng, context=2) for m in (model, other))
    torch.testing.assert_close(ours.nats_B, theirs.nats_B, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.mc_var_B, theirs.mc_var_B, rtol=0, atol=1e-6)
    ours, theirs = (m.training_loss(texts, rng=rng).value for m in (model, other))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("size", "positions", "length", "context"), [(2, 4, 3, 0), (3, 6, 4, 1), (4, 8, 7, 5)])
def test_draws_agree_with_all_masks_enumerated(size, positions, length, context):
    model = untrained(size, positions)
    texts = torch.randint(V, (4, length))
    found = model.log_likelihood(texts, context=context, rng=SequenceRng(0, range(4)), draws=128)
    torch.testing.assert_close(found.tokens_B, torch.full((4,), length - context))
    expected = enumerated_bound(model, texts, context)
    assert ((found.nats_B - expected).abs() <= 4 * found.mc_var_B.sqrt() + 1e-9).all()


def test_training_loss_is_the_bound_in_expectation():
    model = untrained(4, 8)
    texts = torch.randint(V, (4, 7))
    with torch.no_grad():
        losses = torch.stack(
            [
                model.training_loss(texts[[row] * 100], rng=SequenceRng(seed, range(100))).value
                for row in range(4)
                for seed in range(4)
            ]
        ).view(4, 4)
    expected = -enumerated_bound(model, texts) / 7
    torch.testing.assert_close(losses.mean(1), expected, rtol=0.02, atol=0)


@pytest.mark.parametrize(("size", "positions"), [(2, 6), (5, 5)])
def test_total_mass_with_all_masks_enumerated(size, positions):
    model, texts = trained(size, positions), all_texts(V, 4)
    bound = enumerated_bound(model, texts)
    assert 0.3 < float(bound.exp().sum()) <= 1 + 1e-9
    law = enumerated_law(model, texts)
    assert float(law.sum()) == pytest.approx(1, abs=1e-9)
    assert (bound <= law.log() + 1e-9).all()  # Jensen, order by order


@pytest.mark.parametrize(
    ("size", "positions", "prompt", "new"),
    [(2, 4, [], 3), (1, 4, [], 3), (3, 6, [1], 3)],
    ids=["blocks of 2", "autoregressive", "prompt inside a block"],
)
def test_samples_follow_the_enumerated_law(size, positions, prompt, new):
    model, count = trained(size, positions), 4000
    texts = torch.cat([torch.tensor(prompt * V**new).view(V**new, -1).long(), all_texts(V, new)], 1)
    law = enumerated_law(model, texts, context=len(prompt))
    if size == 1:
        exact = model.log_likelihood(texts, rng=SequenceRng(0, range(len(texts)))).nats_B.exp()
        torch.testing.assert_close(law, exact)
    drawn = model.generate([prompt] * count, max_new_tokens=new, sampling=Sampling(), rng=SequenceRng(3, range(count)))
    assert drawn.network_evaluations == [new] * count
    codes = torch.tensor(drawn.tokens) @ V ** torch.arange(new).flip(0)
    frequency = torch.bincount(codes, minlength=V**new)
    assert chisquare(frequency.numpy(), (law / law.sum() * count).numpy()).pvalue > 0.001


def test_gradient_flows_through_the_clean_pass():
    model, texts, rng = untrained(2, 8), torch.randint(V, (3, 7)), SequenceRng(0, range(3))
    parameters = list(model.parameters())
    directions = [torch.randn_like(p) for p in parameters]

    def loss_at(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(parameters, directions, strict=True):
                p.add_(d, alpha=step)
            value = float(model.training_loss(texts, rng=rng).value)
            for p, d in zip(parameters, directions, strict=True):
                p.sub_(d, alpha=step)
        return value

    def slope() -> float:
        gradients = torch.autograd.grad(model.training_loss(texts, rng=rng).value, parameters)
        return sum(float((g * d).sum()) for g, d in zip(gradients, directions, strict=True))

    measured = (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6
    assert slope() == pytest.approx(measured, rel=1e-5)
    passes = model.clean_pass
    model.clean_pass = lambda inputs: [(k.detach(), v.detach()) for k, v in passes(inputs)]
    assert slope() != pytest.approx(measured, rel=1e-2)


def test_clipping_is_for_training_only():
    """From the upper half of shares both tokens of a block of two are masked: the loss is deterministic."""
    texts = torch.randint(V, (4, 7))
    plain, clipped = untrained(2, 8), untrained(2, 8, clip_low=0.5)
    seeds = [SequenceRng(seed, range(4)) for seed in range(4)]
    assert len({round(float(plain.training_loss(texts, rng=rng).value.detach()), 9) for rng in seeds}) > 1
    assert len({round(float(clipped.training_loss(texts, rng=rng).value.detach()), 9) for rng in seeds}) == 1
    for rng in seeds:
        a, b = (model.log_likelihood(texts, rng=rng) for model in (plain, clipped))
        torch.testing.assert_close(a.nats_B, b.nats_B, rtol=0, atol=0)


@torch.no_grad()
def test_clipped_from_above():
    """From the lower half of shares a block of two has one mask, either of them, with weight two."""
    model, text = untrained(2, 4, clip_high=0.5), torch.tensor([[1, 2, 0]])
    first, left, right = (
        float(log_p(model, canvas(model, text, block, (at,)))[0, at, text[0, at - 1]])
        for block, at in ((0, 1), (1, 2), (1, 3))
    )
    losses = {round(float(model.training_loss(text, rng=SequenceRng(0, [n])).value), 6) for n in range(30)}
    assert losses == {round(-(first + 2 * other) / 3, 6) for other in (left, right)}


def test_search_for_a_clipped_schedule():
    model, texts, rng = untrained(4, 8), torch.randint(V, (16, 7)), SequenceRng(0, range(16))
    found = clipping_search.search_clipping(model, [(texts, rng)], draws=64)
    assert len(found.variances) == 11 + 9 + 7 + 5 + 3 and (0.3, 0.8) in found.variances
    assert found.variances[found.low, found.high] == min(found.variances.values())
    inputs, losses = model.lay_out(texts), []
    everything = torch.ones_like(texts, dtype=torch.bool)
    for masks in draw_masks(everything, rng, draws=64, block_length=7, block=4, low=0.3, high=0.8):
        noisy = inputs.clone()
        noisy[:, 1:][masks.masked_BL] = MASK
        for block, real in ((0, slice(1, 4)), (1, slice(4, 8))):
            mixed = torch.cat([inputs[:, : block * 4], noisy[:, block * 4 : block * 4 + 4]], 1)
            nats = log_p(model, mixed)[:, real].gather(2, inputs[:, real, None])[..., 0]
            weight = masks.weight_BL[:, real.start - 1 : real.stop - 1]
            losses.append(-(weight * nats).mean(1))
    assert float(torch.cat(losses).var()) == pytest.approx(found.variances[0.3, 0.8], rel=0.1)
    with pytest.raises(ValueError, match="no share to clip"):
        clipping_search.search_clipping(untrained(1, 4), [(texts, rng)])
    with pytest.raises(ValueError, match="at least one batch"):
        clipping_search.search_clipping(model, [])


@torch.no_grad()
def test_generation_goes_on_beyond_the_positions():
    """Greedy, blocks of one, 4 positions: 11 tokens, as a loop over the whole text finds them."""
    model = untrained(1, 4)
    found = model.generate(
        [[2, 1, 0], [1]], max_new_tokens=11, sampling=Sampling(temperature=0), rng=SequenceRng(0, range(2))
    )
    assert found.network_evaluations == [11, 11]
    for prompt, tokens in zip([[2, 1, 0], [1]], found.tokens, strict=True):
        text = [BOS, *prompt]
        for _ in range(11):
            age = torch.arange(len(text) + 1)[:, None] - torch.arange(len(text) + 1)
            inputs = model.decoder.embed(torch.tensor([[*text, MASK]]))
            h, _ = model.decoder.run(inputs, visible=(age >= 0) & (age < 4))
            text.append(int((h[0, -1] @ model.decoder.head().T).argmax()))
        assert tokens == text[len(prompt) + 1 :]


@torch.no_grad()
def test_cached_blocks_are_the_uncached_ones():
    model, S = untrained(2, 6), 2
    inputs = torch.randint(V, (3, 12))
    whole = evaluate(model.decoder, S, inputs, 0, [KeyValueCache() for _ in model.decoder.blocks])
    caches, stored = [KeyValueCache() for _ in model.decoder.blocks], 0
    for start in range(0, 12, S):
        for _ in range(2):  # a second look at a block finds the first one's tokens taken in
            h = evaluate(model.decoder, S, inputs[:, stored : start + S], stored, caches)
            stored = start
        torch.testing.assert_close(h, whole[:, start : start + S])
        assert all(len(cache) <= 4 for cache in caches)


def test_stops_inside_a_block_and_refuses_what_it_cannot_do():
    model = trained(5, 10)
    prompts = [[0, 1], [2, 2], [0, 0]] * 10

    def drawn(**options):
        sampling = Sampling(**options)
        return model.generate(prompts, max_new_tokens=16, sampling=sampling, rng=SequenceRng(0, range(30)))

    free, stopped = drawn(), drawn(stop_ids=(2,))
    assert any(2 in tokens for tokens in free.tokens)
    for whole, cut, evaluations in zip(free.tokens, stopped.tokens, stopped.network_evaluations, strict=True):
        assert cut == whole[: whole.index(2) + 1] if 2 in whole else cut == whole
        assert len(cut) <= evaluations <= 16
    assert sum(stopped.network_evaluations) < 30 * 16
    with pytest.raises(ValueError, match="reinfer_every"):
        drawn(reinfer_every=2)
    for model, prompt, new in ((trained(5, 10), [0] * 10, 1), (untrained(6, 6), [0] * 3, 3)):
        with pytest.raises(ValueError, match="exceed"):
            model.generate([prompt], max_new_tokens=new, sampling=Sampling(), rng=SequenceRng(0, [0]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_size": 5}, r"divide the 12 positions.*found 5; possible: 1, 2, 3, 4, 6, 12"),
        ({"block_size": 0}, "found 0"),
        ({"clip_low": 0.8, "clip_high": 0.5}, "clip_low < clip_high"),
        ({"decoder": dataclasses.replace(decoder(12), window=4)}, "decoder.window=none"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        BD3LMConfig(**({"vocab_size": V + 1, "decoder": decoder(12), "block_size": 4} | settings))


@pytest.mark.parametrize(("name", "target"), [("small", 38_369_280), ("medium", 51_005_952), ("large", 76_279_296)])
def test_presets_match_in_parameters(name, target):
    with torch.device("meta"):
        model = BD3LM(dataclasses.replace(BD3LM.presets[f"bd3lm-{name}"].config, vocab_size=50258))
    assert model.cost(1023).parameters == pytest.approx(target, rel=0.01)


@pytest.mark.parametrize("size", [1, 8])
def test_counted_operations(size):
    """Costs of generation and of blocks of one; `test_cost.py` counts the presets."""
    torch.manual_seed(0)
    shape = TransformerConfig(layers=2, width=32, heads=2, hidden=64, max_length=32, window=None)
    model = BD3LM(BD3LMConfig(vocab_size=101, decoder=shape, block_size=size, clip_low=0.3, clip_high=0.8))
    tokens, rng, cost = torch.randint(100, (4, 31)), SequenceRng(0, range(4)), model.cost(31)

    def a_token(run) -> float:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            run()
        return counter.get_total_flops() / tokens.numel()

    trained_once = a_token(lambda: model.training_loss(tokens, rng=rng).value.backward())
    assert trained_once == pytest.approx(cost.train_flops_per_token, rel=0.02)
    scored = a_token(lambda: model.log_likelihood(tokens, rng=rng))
    assert scored == pytest.approx(cost.score_flops_per_token, rel=0.02)
    generated = a_token(lambda: model.generate([[]] * 4, max_new_tokens=31, sampling=Sampling(), rng=rng))
    assert generated == pytest.approx(cost.generate_flops_per_token, rel=0.02)
