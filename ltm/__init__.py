"""Benchmarks for language models whose likelihood is a bound.

Here are the names that other packages build on. They are imported when they are used, since lm-eval's start-up hook
imports this package in every interpreter: `import ltm` itself loads nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    **dict.fromkeys(
        ("Cost", "Generations", "LanguageModel", "LikelihoodEstimate", "LoadedModel", "Loss", "Preset", "Sampling"),
        "ltm.api",
    ),
    "ExactModel": "ltm.nn.left_to_right",
    "KnownSource": "ltm.known_sources.base",
    "LatentModel": "ltm.latent.base",
    "Split": "ltm.data.split",
    "UserError": "ltm.errors",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ltm' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
