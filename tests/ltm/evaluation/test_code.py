"""Digests of code: what changes a model's numbers changes them, and prose does not."""

from __future__ import annotations

import sys
from importlib import import_module, invalidate_caches

import pytest

from ltm import registry
from ltm.evaluation.code import class_name, code_digest, model_code

SOURCE = '''"""A model."""

from tests.support.harness_models import Bigram
from a_package_of_code import shared


class Mine(Bigram):
    """A docstring."""

    draws = shared.DRAWS  # how many
'''
SHARED = "DRAWS = 3\n"


@pytest.fixture
def digests(tmp_path, monkeypatch):
    """Write the package anew and return the digest of its model's code."""
    package = tmp_path / "a_package_of_code"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))

    def digest(source: str = SOURCE, shared: str = SHARED, **others: str) -> str:
        for name, text in {"model": source, "shared": shared, **others}.items():
            (package / f"{name}.py").write_text(text)
        for name in [name for name in sys.modules if name.startswith("a_package_of_code")]:
            del sys.modules[name]
        invalidate_caches()
        return model_code.__wrapped__(import_module("a_package_of_code.model").Mine)

    return digest


def test_what_the_model_is_made_of_changes_the_digest(digests):
    before = digests()
    assert digests() == before
    assert digests(shared="DRAWS = 4\n") != before
    assert digests(SOURCE.replace("draws =", "noises =")) != before
    assert digests(SOURCE.replace("Mine", "Mine2") + "\n\nMine = Mine2\n") != before


def test_prose_and_what_it_does_not_import_change_nothing(digests):
    before = digests()
    assert digests(SOURCE.replace("A model.", "A model of text.").replace("A docstring", "Another one")) == before
    assert digests(SOURCE.replace("\n    draws", "\n    # Why not?\n\n    draws")) == before
    assert digests(command_line="print('other code of the package')\n") == before


def test_classes_of_one_name_in_two_modules_are_told_apart():
    names = {class_name(registry.model_family(name)) for name in registry.names(registry.MODELS)}
    assert len(names) == len(registry.names(registry.MODELS)) and "ltm.latent.model.LatentThoughtModel" in names


def test_our_families_have_code_of_their_own():
    families = [registry.model_family(name) for name in ("ltm", "ar", "mdlm", "vae")]
    assert len({model_code(cls) for cls in families}) == len({*map(class_name, families)}) == 4
    assert model_code(families[0]) != code_digest(families[0])
