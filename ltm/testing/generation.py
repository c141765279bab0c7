"""Tests of `generate`: it repeats under a seed, keeps to its limits, and draws from the distribution that is scored."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from ltm.api import Generations, LanguageModel, Rng, Sampling
from ltm.nn.left_to_right import ExactModel
from ltm.rng import SequenceRng
from ltm.testing.miniatures import FamilyTests, V, all_texts

PROMPTS = [[0, 1], [], [2], [1, 1]]


def written(
    model: LanguageModel, prompts: list[list[int]], new: int = 2, rng: Rng | None = None, **how: Any
) -> Generations:
    """What a model writes with `Sampling(**how)`, under the noise of seed 7 by default."""
    rng = rng or SequenceRng(7, range(len(prompts)))
    return model.generate(prompts, max_new_tokens=new, sampling=Sampling(**how), rng=rng)


def next_token_nats(model: LanguageModel, prompt: list[int]) -> Tensor:
    """The exact log-probability of each token after a prompt, (V,)."""
    texts = torch.tensor([[*prompt, token] for token in range(V)])
    return model.log_likelihood(texts, context=len(prompt), rng=SequenceRng(0, range(V))).nats_B


def follows(drawn: list[int], log_p: Tensor) -> bool:
    """True if outcomes follow a law: their chi-square is not among the worst in a thousand."""
    frequency, expected = torch.bincount(torch.tensor(drawn), minlength=len(log_p)), log_p.exp()
    expected = expected / expected.sum() * len(drawn)
    return float(chisquare(frequency.numpy(), expected.numpy()).pvalue) > 0.001


def is_exact(model: LanguageModel) -> bool:
    """True if the headline is the exact likelihood, so that what is written can be held against it."""
    return model.log_likelihood(torch.tensor([[0]]), rng=SequenceRng(0, [0])).kind == "exact"


class GenerationTests(FamilyTests):
    """The contract of `LanguageModel.generate`, `Sampling` and `Generations`."""

    @pytest.mark.parametrize(
        "how", [{}, {"temperature": 0.0}, {"temperature": 0.5, "top_k": 2}, {"top_p": 0.5}], ids=str
    )
    def test_repeats_under_a_seed_whatever_the_batch(self, model: LanguageModel, how: dict[str, Any]) -> None:
        """A row depends on its prompt and its noise; only new tokens are given, as many as asked for, never BOS."""
        together = written(model, PROMPTS, **how)
        assert together == written(model, PROMPTS, **how) and isinstance(together, Generations)
        for row in (3, 1):
            alone = written(model, [PROMPTS[row]], rng=SequenceRng(7, [row]), **how)
            assert alone.tokens[0] == together.tokens[row]
        assert [len(text) for text in together.tokens] == [2] * len(PROMPTS)
        assert all(type(token) is int and 0 <= token < V for text in together.tokens for token in text)
        assert len(together.network_evaluations) == len(PROMPTS)
        assert all(evaluations >= 1 for evaluations in together.network_evaluations)

    def test_noise_of_generation_comes_from_rng_alone(self, model: LanguageModel) -> None:
        """The same whatever the global generators hold; another seed gives other text; a torch.Generator will do."""
        prompts: list[list[int]] = [[]] * 16
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            first = written(model, prompts, rng=torch.Generator().manual_seed(3)), written(model, prompts)
            torch.manual_seed(2)
            again = written(model, prompts, rng=torch.Generator().manual_seed(3)), written(model, prompts)
        assert first == again
        assert written(model, prompts, rng=SequenceRng(8, range(16))).tokens != first[1].tokens

    def test_stops_at_stop_ids(self, model: LanguageModel) -> None:
        """A text ends with its first stop id, which is included."""
        prompts, stop = [[], [0], [1, 2], [1]] * 8, (0, 2)
        texts = written(model, prompts, 2, stop_ids=stop).tokens
        ends = [next((n for n, token in enumerate(text) if token in stop), 1) for text in texts]
        assert [len(text) for text in texts] == [end + 1 for end in ends] and {0, 1} == set(ends)
        assert all(len(text) == 1 for text in written(model, prompts, 2, stop_ids=tuple(range(V))).tokens)

    def test_prompts_longer_than_a_block_are_refused(self, model: LanguageModel) -> None:
        """ValueError that says how long the prompt is; nothing is cut silently, whichever row it is in."""
        longest = model.block_length
        for too_long in (longest + 1, longest + 7):
            with pytest.raises(ValueError, match=rf"(?<!\d){too_long}(?!\d)"):
                written(model, [[0], [0] * too_long], 1)

    def test_a_prompt_that_fills_the_block_is_continued_or_refused(self, model: LanguageModel) -> None:
        """A family that cannot write past its block says so."""
        try:
            assert [len(text) for text in written(model, [[0] * model.block_length], 1).tokens] == [1]
        except ValueError as error:
            assert str(model.block_length) in str(error)

    @pytest.mark.parametrize("bad", [-1, V, V + 1, 1000])
    def test_prompts_outside_the_vocabulary_are_refused(self, model: LanguageModel, bad: int) -> None:
        """ValueError that names the id; BOS is the model's to put in front."""
        for prompt in ([bad], [0, bad]):
            with pytest.raises(ValueError, match=rf"(?<!\d){bad}(?!\d)"):
                written(model, [[0], prompt], 1)

    def test_no_new_tokens_are_refused(self, model: LanguageModel) -> None:
        """ValueError for fewer than one."""
        for number in (0, -1):
            with pytest.raises(ValueError, match="max_new_tokens"):
                written(model, [[0]], number)

    def test_refitting_is_done_or_refused(self, model: LanguageModel) -> None:
        """`reinfer_every` is for models with a posterior; others refuse it."""
        try:
            assert len(written(model, [[0]], reinfer_every=1).tokens[0]) == 2 and not isinstance(model, ExactModel)
        except ValueError as error:
            assert "reinfer_every" in str(error)

    @pytest.mark.parametrize("how", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-9}], ids=str)
    def test_greedy_text_is_the_most_likely(self, model: LanguageModel, how: dict[str, Any]) -> None:
        """Of exact models, the next token is the one of highest likelihood, under any noise."""
        if not is_exact(model):
            pytest.skip("only exact likelihoods say which token is next")
        greedy = written(model, PROMPTS, 1, rng=SequenceRng(11, range(4)), **how).tokens
        assert greedy == [[int(next_token_nats(model, prompt).argmax())] for prompt in PROMPTS]

    def test_frequencies_match_the_likelihood(self, model: LanguageModel) -> None:
        """Of exact models: texts of two tokens, and next tokens after a prompt, by chi-square against log p."""
        if not is_exact(model):
            pytest.skip("the sampler of a model that is not exact may have another law than its bound's")
        count, texts = 4000, all_texts(V, 2)
        drawn = written(model, [[]] * count, rng=SequenceRng(3, range(count))).tokens
        log_p = model.log_likelihood(texts, rng=SequenceRng(0, range(len(texts)))).nats_B
        assert follows([a * V + b for a, b in drawn], log_p)
        for prompt, temperature in (([0, 2], 1.0), ([1], 0.5)):
            rng = SequenceRng(5, range(count))
            drawn = written(model, [prompt] * count, 1, rng=rng, temperature=temperature).tokens
            assert follows([token for (token,) in drawn], next_token_nats(model, prompt) / temperature)
