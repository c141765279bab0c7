"""What a result says of where it was made."""

from importlib.metadata import version

import pytest

from tasks import provenance as module


def test_versions_are_of_the_packages_that_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("torch", "a-package-that-nobody-installs"))
    made = module.provenance("ltm-eval", "cpu", seconds=1.0, tokens=10)["versions"]
    assert made["torch"] == version("torch")
    assert "a-package-that-nobody-installs" not in made
