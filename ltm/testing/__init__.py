"""The contract of `ltm.api` as pytest tests, for a model family of any package.

In a test module of the package that brings the family:

    from ltm.testing import ltm_contract_tests

    from my_package.mine import MyModel

    TestMyModel = ltm_contract_tests(MyModel)

Needs pytest: `pip install 'latent-thought-bench[testing]'`. Nothing else in `ltm` imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ltm.api import LanguageModel

# Before they are imported, so that a failing `assert` shows its values.
_MODULES = ("declarations", "likelihoods", "generation", "training")
pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _MODULES))


def ltm_contract_tests(family: type[LanguageModel]) -> type:
    """Make the class of tests that hold a model family to every promise of `ltm.api`.

    Bind it to a name that begins with `Test`. To change or mark a single test, make a subclass of it instead. The tests
    build `family.miniature` over three tokens and train it for a second or so; the entry point of the family must be
    installed (`pip install --editable .`).
    """
    from ltm.testing.declarations import DeclarationTests
    from ltm.testing.generation import GenerationTests
    from ltm.testing.likelihoods import LikelihoodTests
    from ltm.testing.training import TrainingTests

    tests = (DeclarationTests, TrainingTests, LikelihoodTests, GenerationTests)
    return type(f"Test{family.__name__}", tests, {"family": family, "__doc__": f"The contract, of {family.__name__}."})
