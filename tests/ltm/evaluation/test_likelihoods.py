"""Likelihoods that pass through lm-eval as floats."""

from __future__ import annotations

import numpy as np
import pytest

from ltm.evaluation.likelihoods import BlockLikelihoods, LikelihoodFloat


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
