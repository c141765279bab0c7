"""The public contract tests, on every registered family."""

from __future__ import annotations

from ltm import registry
from ltm.testing import ltm_contract_tests

for _name in registry.names(registry.MODELS):
    _family = registry.model_family(_name)
    globals()[f"Test{_family.__name__}"] = ltm_contract_tests(_family)
