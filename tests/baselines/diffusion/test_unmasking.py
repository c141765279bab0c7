"""Unmasking samplers against their exactly computed laws, and what float32 noise does to rare tokens."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import pytest
import torch
from scipy.stats import chisquare

from baselines.diffusion.mdlm import MDLM
from baselines.diffusion.unmasking import ancestral, first_hitting, generate
from ltm.api import Sampling
from ltm.rng import SequenceRng
from ltm.testing.miniatures import V, all_texts, structured_batch

LENGTH = 3
MASK = V + 1  # the id after BOS
CANVASES = list(itertools.product((*range(V), MASK), repeat=LENGTH))


@functools.cache
def trained() -> MDLM:
    """A miniature for texts of three tokens, in float64, trained until it is far from uniform."""
    torch.manual_seed(0)
    model = MDLM(MDLM.miniature(V + 1, LENGTH)).double()
    adam, generator = torch.optim.Adam(model.parameters(), lr=0.02), torch.Generator().manual_seed(0)
    for update in range(150):
        adam.zero_grad()
        rng = SequenceRng(0, range(update * 32, update * 32 + 32))
        model.training_loss(structured_batch(generator, 32)[:, :LENGTH], rng=rng).value.backward()
        adam.step()
    return model.eval().requires_grad_(False)


def with_sampler(sampler: str, steps: int = 5) -> MDLM:
    model = MDLM(dataclasses.replace(trained().config, sampler=sampler, sampling_steps=steps)).double()
    model.load_state_dict(trained().state_dict())
    return model.eval().requires_grad_(False)


@functools.cache
def conditionals() -> dict[tuple[int, ...], torch.Tensor]:
    """p(token | canvas) at every position of every canvas, (LENGTH, V); certain where it is not masked."""
    model = trained()
    inputs = torch.tensor([(V, *canvas) for canvas in CANVASES])
    p = (model.decoder(inputs)[:, 1:] @ model.decoder.embedding[:V].T).softmax(-1)
    given = inputs[:, 1:, None] == torch.arange(V)
    p = torch.where((inputs[:, 1:] == MASK)[..., None], p, given.double())
    return dict(zip(CANVASES, p, strict=True))


def first_hitting_law(start: tuple[int, ...]) -> torch.Tensor:
    """Mean over all orders of the product of the conditionals, for each text."""
    masked = [i for i, token in enumerate(start) if token == MASK]
    orders = list(itertools.permutations(masked))
    law = []
    for text in all_texts(V, LENGTH).tolist():
        total = 0.0
        for order in orders:
            canvas, p = list(start), float(all(t in (MASK, x) for t, x in zip(start, text, strict=True)))
            for i in order:
                p *= float(conditionals()[tuple(canvas)][i, text[i]])
                canvas[i] = text[i]
            total += p / len(orders)
        law.append(total)
    return torch.tensor(law, dtype=torch.float64)


def ancestral_law(start: tuple[int, ...], rates: list[float]) -> torch.Tensor:
    """The distribution over all 4^3 canvases, carried from rate to rate; then that of each text."""
    state = torch.zeros((V + 1,) * LENGTH, dtype=torch.float64)  # the last index of each is the mask
    state[tuple(min(token, V) for token in start)] = 1.0
    for rate, following in itertools.pairwise(rates):
        after = torch.zeros_like(state)
        for index in itertools.product(range(V + 1), repeat=LENGTH):
            canvas = tuple(MASK if i == V else i for i in index)
            moves = []
            for i, p in zip(index, conditionals()[canvas], strict=True):
                stays = torch.tensor(following / rate if i == V else 0.0, dtype=torch.float64)
                moves.append(torch.cat([p * (1 - stays), stays.reshape(1)]))
            after += state[index] * torch.einsum("a,b,c->abc", *moves)
        state = after
    assert float(state[:V, :V, :V].sum()) == pytest.approx(1, abs=1e-12)
    return state[:V, :V, :V].flatten()


def p_value(texts: list[list[int]], law: torch.Tensor) -> float:
    """Chi-square of drawn texts against their law; texts that are too rare for it share a cell."""
    codes = torch.tensor(texts) @ torch.tensor([V ** (LENGTH - 1 - i) for i in range(LENGTH)])
    found, expected = torch.bincount(codes, minlength=V**LENGTH).double(), law * len(texts)
    assert not found[law == 0].any()
    rare = expected < 5
    cells = [torch.cat([x[~rare], x[rare & (law > 0)].sum()[None]]) for x in (found, expected)]
    keep = cells[1] > 0
    return float(chisquare(cells[0][keep].numpy(), cells[1][keep].numpy()).pvalue)


@pytest.mark.parametrize("prompt", [[], [1]])
@pytest.mark.parametrize(
    ("sampler", "steps"), [("first_hitting", 1), ("ancestral", 1), ("ancestral", 3), ("cached", 8)]
)
def test_samples_follow_the_exact_law(sampler, steps, prompt):
    count, start = 4000, (*prompt, *[MASK] * (LENGTH - len(prompt)))
    made = with_sampler(sampler, steps).generate(
        [prompt] * count,
        max_new_tokens=LENGTH - len(prompt),
        sampling=Sampling(),
        rng=SequenceRng(1, range(count)),
    )
    if sampler == "first_hitting":
        law = first_hitting_law(start)
    else:
        law = ancestral_law(start, [1 - step / steps for step in range(steps + 1)])
    assert float(law.sum()) == pytest.approx(1, abs=1e-12)
    assert p_value([prompt + new for new in made.tokens], law) > 0.001


def test_laws_differ_and_meet_in_the_limit():
    """One step draws all tokens independently; many steps approach first hitting: the tests above tell them apart."""
    limit = first_hitting_law((MASK,) * LENGTH)
    distances = []
    for steps in (1, 4, 64):
        law = ancestral_law((MASK,) * LENGTH, [1 - step / steps for step in range(steps + 1)])
        distances.append(float((law - limit).abs().sum()))
    assert distances[0] > 0.2 > distances[1] > 8 * distances[2] and distances[2] < 0.02


def test_cached_samples_are_the_same_for_fewer_evaluations():
    prompts, steps = [[]] * 60 + [[2]] * 60, 6
    rng = SequenceRng(4, range(120))
    options = {"max_new_tokens": 2, "sampling": Sampling(), "rng": rng}
    plain = with_sampler("ancestral", steps).generate(prompts, **options)
    cached = with_sampler("cached", steps).generate(prompts, **options)
    single = with_sampler("first_hitting").generate(prompts, **options)
    assert plain.tokens == cached.tokens
    assert set(plain.network_evaluations) == {steps}
    assert set(cached.network_evaluations) == {1, 2}
    assert set(single.network_evaluations) == {2}


def test_cached_needs_no_network_that_ignores_the_rate():
    """A network conditioned on the rate: samples depend on it, and are the same with and without the cache."""
    calls = []

    def predict(canvas_BL, rate_B, wanted_BL):
        calls.append(len(canvas_BL))
        logits = torch.zeros(int(wanted_BL.sum()), 50, dtype=torch.float64)
        return logits + torch.arange(50) * (rate_B[:, None].expand_as(wanted_BL)[wanted_BL][:, None] - 0.5)

    canvas, rates = torch.full((20, 8), 51), [1, 0.9, 0.4, 0.2, 0.1, 0.0]
    canvas[:, 3] = 7
    found, used = [], []
    for cached in (False, True):
        noise = SequenceRng(0, range(20)).stream("x")
        options = {"block_length": 10, "sampling": Sampling(), "cached": cached}
        tokens, evaluations = ancestral(predict, canvas, 51, rates, noise, **options)
        found.append(tokens)
        used.append(int(evaluations.sum()))
    assert torch.equal(*found) and (found[0] < 50).all() and (found[0][:, 3] == 7).all()
    assert used[0] == 100 and used[1] < 100 and sum(calls) == sum(used)


def test_expected_evaluations_are_those_of_the_cost():
    count, model = 2000, with_sampler("cached", 4)
    made = model.generate([[]] * count, max_new_tokens=3, sampling=Sampling(), rng=SequenceRng(0, range(count)))
    mean = sum(made.network_evaluations) / count
    assert mean == pytest.approx(4 * (1 - (3 / 4) ** 3), rel=0.03)
    costs = [with_sampler(name, 4).cost(LENGTH).generate_flops_per_token for name in ("cached", "first_hitting")]
    head = 2 * 8 * V
    assert (costs[0] - head) / (costs[1] - head) == pytest.approx(mean / 3, rel=0.03)


@pytest.mark.parametrize("rates", [[1, 0.5], [0.9, 0.0], [1, 0.5, 0.5, 0.0], [1]])
def test_rates_must_fall_from_one_to_zero(rates):
    noise, options = SequenceRng(0, [0]).stream("x"), {"block_length": 1, "sampling": Sampling()}
    with pytest.raises(ValueError, match="fall strictly from 1 to 0"):
        ancestral(None, torch.zeros(1, 1), 1, rates, noise, **options)


def test_greedy_and_truncated_draws():
    prompts, options = [[]] * 50, {"max_new_tokens": 3, "rng": SequenceRng(0, range(50))}
    model = with_sampler("first_hitting")
    greedy = model.generate(prompts, sampling=Sampling(temperature=0), **options)
    assert greedy == model.generate(prompts, sampling=Sampling(top_k=1), **options)
    assert greedy == model.generate(prompts, sampling=Sampling(top_p=1e-9), **options)
    assert greedy != model.generate(prompts, sampling=Sampling(), **options)


def counting_fill(canvases: list[list[list[int]]]):
    """A sampler that writes 0, 1, 2, ... into the masks of a row, and keeps the canvases that it was given."""

    def fill(canvas_BL, noise):
        canvases.append(canvas_BL.tolist())
        masked = canvas_BL == 10
        return torch.where(masked, masked.cumsum(1) - 1, canvas_BL), masked.sum(1)

    return fill


def run(prompts, canvases, **options):
    options = {"max_new_tokens": 7, "sampling": Sampling(), "stride": 2, **options}
    rng, device = SequenceRng(0, range(len(prompts))), torch.device("cpu")
    return generate(counting_fill(canvases), prompts, vocab_size=10, block_length=4, rng=rng, device=device, **options)


def test_texts_longer_than_a_block():
    """The last block_length - stride tokens are given to the next canvas; no canvas is longer than needed."""
    canvases = []
    made = run([[7, 8]], canvases)
    assert canvases == [[[7, 8, 10, 10]], [[0, 1, 10, 10]], [[0, 1, 10, 10]], [[0, 1, 10]]]
    assert made.tokens == [[0, 1, 0, 1, 0, 1, 0]] and made.network_evaluations == [7]
    canvases.clear()
    full = run([[1, 2, 3, 4]], canvases, max_new_tokens=1)  # no room left: the window moves on at once
    assert canvases == [[[3, 4, 10]]] and full.tokens == [[0]]
    canvases.clear()
    run([[1, 2, 3, 4]], canvases, max_new_tokens=4, stride=4)  # nothing carried over
    assert canvases == [[[10, 10, 10, 10]]]
    canvases.clear()
    run([[]], canvases, max_new_tokens=8, stride=None)  # half a block
    assert canvases == [[[10] * 4], [[2, 3, 10, 10]], [[0, 1, 10, 10]]]


def test_a_row_ends_with_the_canvas_of_its_stop_id():
    canvases = []
    made = run([[7, 8], [], [1]], canvases, sampling=Sampling(stop_ids=(2, 9)))
    # By length of prompt: the empty one and [1] reach the token 2 in their first canvas; [7, 8] never does.
    assert made.tokens == [[0, 1, 0, 1, 0, 1, 0], [0, 1, 2], [0, 1, 2]]
    assert made.network_evaluations == [7, 4, 3]
    assert [len(c) for c in canvases] == [1] * 6
    assert run([[2]], [], sampling=Sampling(stop_ids=(2,))).tokens == [[0, 1, 2]]  # a prompt's own does not count


@pytest.mark.parametrize("sampler", ["first_hitting", "ancestral", "cached"])
def test_a_row_alone_is_the_row_in_its_batch(sampler):
    """Through several canvases, though other rows end earlier."""
    model = with_sampler(sampler, 2)
    prompts = [[], [1], [], [0, 2, 1], [2], []]
    options = {"max_new_tokens": 9, "sampling": Sampling(stop_ids=(2,))}
    together = model.generate(prompts, rng=SequenceRng(5, range(6)), **options)
    assert len({len(t) for t in together.tokens}) > 1
    for row, prompt in enumerate(prompts):
        alone = model.generate([prompt], rng=SequenceRng(5, [row]), **options)
        assert alone.tokens[0] == together.tokens[row]
        assert alone.network_evaluations[0] == together.network_evaluations[row]
        assert 2 not in alone.tokens[0][:-1]


def test_bad_requests():
    with pytest.raises(ValueError, match="5 tokens of a prompt exceed the 4"):
        run([[], [1] * 5], [])
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1, found 0"):
        run([[]], [], max_new_tokens=0)
    with pytest.raises(ValueError, match="reinfer_every"):
        run([[]], [], sampling=Sampling(reinfer_every=4))
    with pytest.raises(ValueError, match="token id 10 is outside"):
        run([[10]], [])
    assert run([], []).tokens == []


STEPS = 4096
GROUPS = {0.9: 1, 1e-3: 20, 1e-4: 800}  # one common token and a long tail: how many tokens have each probability


def gumbel_counts(dtype: torch.dtype, positions: int) -> torch.Tensor:
    """Tokens of each group drawn as argmax p / (1e-10 - log(u + 1e-10)), ancestral, with u of this dtype.

    The usual code: the mask competes with the tokens at every step. Of n tokens with one p the largest u wins, and
    its law is known: one number U^(1/n), put on the dtype's grid, stands for n.
    """
    generator = torch.Generator().manual_seed(0)
    grid, mask = 2.0 ** (24 if dtype == torch.float32 else 53), len(GROUPS)
    counts, left = torch.zeros(mask, dtype=torch.int64), positions
    for step in range(STEPS):
        rate, following = 1 - step / STEPS, 1 - (step + 1) / STEPS
        u = torch.rand(mask + 1, left, generator=generator, dtype=torch.float64)
        for group, tokens in enumerate(GROUPS.values()):
            if tokens > 1:
                u[group] **= 1 / tokens
        u = (u.mul_(grid).floor_() / grid).to(dtype)
        weights = torch.tensor([p * (rate - following) for p in GROUPS] + [following], dtype=dtype)
        drawn = (weights[:, None] / (1e-10 - (u + 1e-10).log())).argmax(0)
        found = torch.bincount(drawn, minlength=mask + 1)
        counts, left = counts + found[:mask], int(found[mask])
    return counts


def test_float32_noise_loses_rare_tokens_and_ours_does_not():
    """4,096 steps on a peaked distribution. The largest float32 below 1 caps the noise that a rare token needs to win.

    Of 40,000 tokens drawn with float32, those at 1e-4 come 0.57 times as often as they should, and the common one
    1.04 times: a lower temperature than was asked for. With float64 all come as often as p says, by either method.
    """
    B, L, sizes = 2, 1000, list(GROUPS.values())
    log_p = torch.cat([torch.full((n,), p, dtype=torch.float64).log() for p, n in GROUPS.items()])
    mask_id = len(log_p) + 1

    def predict(canvas_BL, rate_B, wanted_BL):
        return log_p.expand(int(wanted_BL.sum()), -1)

    rates, noise = [1 - step / STEPS for step in range(STEPS + 1)], SequenceRng(0, range(B)).stream("x")
    options = {"block_length": L, "sampling": Sampling(), "cached": True}
    drawn, _ = ancestral(predict, torch.full((B, L), mask_id), mask_id, rates, noise, **options)
    ours = torch.stack([part.sum() for part in torch.bincount(drawn.flatten(), minlength=len(log_p)).split(sizes)])
    expected = torch.tensor([p * n * B * L for p, n in GROUPS.items()], dtype=torch.float64)
    found = {"ours": ours, **{str(t): gumbel_counts(t, B * L) for t in (torch.float32, torch.float64)}}
    p_values = {name: float(chisquare(counts.numpy(), expected.numpy()).pvalue) for name, counts in found.items()}
    assert p_values["torch.float32"] < 1e-4, (p_values, found)
    assert p_values["torch.float64"] > 0.001 and p_values["ours"] > 0.001, (p_values, found)
    kept = found["torch.float32"] / expected
    assert float(kept[2]) < 0.7 and float(kept[0]) > 1


def test_first_hitting_of_rows_that_need_different_numbers():
    """A row without masks is left alone and costs nothing; noise is per row."""

    def predict(canvas_BL, rate_B, wanted_BL):
        assert (wanted_BL.sum(1) == 1).all() and ((rate_B > 0) & (rate_B < 1)).all()
        return torch.zeros(len(canvas_BL), 4)

    canvas = torch.tensor([[1, 2, 3], [5, 1, 5], [5, 5, 5]])
    tokens, used = first_hitting(predict, canvas, 5, SequenceRng(0, range(3)).stream("x"), sampling=Sampling())
    assert used.tolist() == [0, 2, 3]
    assert tokens[0].tolist() == [1, 2, 3] and tokens[1, 1] == 1 and (tokens < 4).all()
    alone, _ = first_hitting(predict, canvas[1:2], 5, SequenceRng(0, [1]).stream("x"), sampling=Sampling())
    assert torch.equal(alone[0], tokens[1])
