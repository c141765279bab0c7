"""Sound estimators that are not made as ours are, and a pipeline that cuts texts otherwise, are not refuted."""

from __future__ import annotations

import pytest

from tests.mutants import sound
from tests.mutants.specimens import CHECKS, NEEDS_MINI

OF_FAMILIES = ("next_token_mass", "decoder_mass", "continuation_mass", "prequential_mass")
"""What latent models share with their families, whose test asks these."""


def family(name: str) -> str:
    return sound.SOUND[name][1] if name in sound.SOUND else "ar"


def refuted(name: str, seed: int, checks: list[str]) -> list[tuple[str, str]]:
    asked = [c for c in checks if not (family(name) in ("ltm", "vae") and c in OF_FAMILIES)]
    return [(found.name, found.detail) for found in sound.refuted(name, seed, asked)]


@pytest.mark.parametrize(
    ("name", "seed"),
    # Models that fit q take longest, and get one seed here.
    [(name, seed) for name in (*sound.SOUND, sound.STRIDES) for seed in (1, 2) if seed == 1 or family(name) != "ltm"],
)
def test_a_sound_model_is_not_refuted(name, seed):
    assert not refuted(name, seed, [check for check in CHECKS if check not in NEEDS_MINI])


@pytest.mark.parametrize("name", sound.SOUND)
def test_the_sums_of_its_miniature_are_at_most_one(name):
    assert not refuted(name, 3, list(NEEDS_MINI))


@pytest.mark.parametrize(("check", "seed"), [("blank_text", 3), ("proposal_mass", 28)])
def test_one_noise_alone_refutes_no_average(check, seed):
    # Under these seeds the costs of textbook MDLM, k/t, are far too low in the first noise.
    assert not refuted("textbook MDLM", seed, [check])
