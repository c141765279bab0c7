"""Likelihoods that pass through lm-eval as floats."""

from __future__ import annotations

import numpy as np
import pytest

from ltm.evaluation.likelihoods import BlockLikelihoods, LikelihoodFloat, gather, together
from ltm.untrusted.json_text import LARGEST


def test_the_float_is_never_an_upper_bound():
    nats_N, tokens_N = np.array([-3.0, -4.0]), np.array([2, 2])
    both = {
        "elbo": BlockLikelihoods(kind="lower_bound", draws=2, nats_N=nats_N, tokens_N=tokens_N),
        "upper": BlockLikelihoods(kind="upper_bound", draws=2, nats_N=nats_N + 1, tokens_N=tokens_N),
    }
    value = LikelihoodFloat(both, headline="elbo", stream_tokens=4)
    assert float(value) == -7.0 and value.kind == "lower_bound" and value.likelihoods["upper"].nats == -5.0
    with pytest.raises(ValueError, match="upper is an upper bound on log p"):
        LikelihoodFloat(both, headline="upper", stream_tokens=4)


def record(n: int, *, tail: float) -> dict:
    """What is kept of a text's block: a bound from below, and one from above whose draws have a tail."""
    common = {"nats": -3.0 - n, "tokens": 2, "draws": 64, "mc_var": 0.1 * n, "terms": {}, "averaged": False}
    reliability = {"effective": 30.0, "tail": tail}
    return {
        "seconds": 1.0,
        "headline": "elbo",
        "likelihoods": {
            "elbo": {"kind": "lower_bound", **common},
            "upper": {"kind": "upper_bound", **common, "reliability": reliability},
        },
    }


@pytest.mark.parametrize("heavy", [1.0, 3.0])
def test_parts_of_a_text_are_joined_as_if_they_had_come_together(heavy):
    # The second part alone would not be trusted; with the first its mean index is 0.4, or 1.4.
    records = [*(record(n, tail=0.1) for n in range(2)), record(2, tail=heavy)]
    at_once = gather(records, stream_tokens=6, headline="elbo")
    in_parts = together(
        [gather(part, stream_tokens=0, headline="elbo") for part in (records[:2], records[2:])], stream_tokens=6
    )
    assert float(in_parts) == float(at_once) and in_parts.seconds == at_once.seconds
    for name, expected in at_once.likelihoods.items():
        found = in_parts.likelihoods[name]
        assert (found.kind, found.draws, found.nats) == (expected.kind, expected.draws, expected.nats)
        assert {of: list(each) for of, each in found.reliability.items()} == {
            of: list(each) for of, each in expected.reliability.items()
        }
    assert at_once.likelihoods["upper"].kind == ("upper_bound" if heavy == 1.0 else "estimate")


def test_an_upper_bound_that_says_nothing_fits_in_a_result():
    """A weight exp(300) too large, as as of a q far off, makes a bound of 1e130 nats with its square as variance."""
    upper = {"nats": 1e130, "mc_var": 1e260}
    records = [record(n, tail=0.1) for n in range(2)]
    records[1]["likelihoods"]["upper"].update(upper)
    found = gather(records, stream_tokens=4, headline="elbo").likelihoods["upper"]
    assert found.mc_var_N is not None
    assert 1e20 < found.nats_N[1] < found.mc_var_N[1] < LARGEST and found.nats_N[0] == -3.0
