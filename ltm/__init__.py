"""Benchmarks for language models whose likelihood is a bound.

`load`, `evaluate`, and the names that other packages build on. They are imported when they are used, since lm-eval's
start-up hook imports this package in every interpreter: `import ltm` itself loads nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # what type checkers take for typing's, whose import is not free
if TYPE_CHECKING:
    from ltm.api import Cost as Cost
    from ltm.api import Generations as Generations
    from ltm.api import LanguageModel as LanguageModel
    from ltm.api import LikelihoodEstimate as LikelihoodEstimate
    from ltm.api import LoadedModel as LoadedModel
    from ltm.api import Loss as Loss
    from ltm.api import Preset as Preset
    from ltm.api import Sampling as Sampling
    from ltm.data.split import Split as Split
    from ltm.errors import UserError as UserError
    from ltm.interactive import Model as Model
    from ltm.interactive import Score as Score
    from ltm.interactive import evaluate as evaluate
    from ltm.interactive import load as load
    from ltm.known_sources.base import KnownSource as KnownSource
    from ltm.latent.base import LatentModel as LatentModel
    from ltm.nn.left_to_right import ExactModel as ExactModel
    from ltm.published.push import push as push
    from ltm.rng import SequenceRng as SequenceRng

_HOME = {
    **dict.fromkeys(
        ("Cost", "Generations", "LanguageModel", "LikelihoodEstimate", "LoadedModel", "Loss", "Preset", "Sampling"),
        "ltm.api",
    ),
    **dict.fromkeys(("Model", "Score", "evaluate", "load"), "ltm.interactive"),
    "ExactModel": "ltm.nn.left_to_right",
    "KnownSource": "ltm.known_sources.base",
    "LatentModel": "ltm.latent.base",
    "SequenceRng": "ltm.rng",
    "push": "ltm.published.push",
    "Split": "ltm.data.split",
    "UserError": "ltm.errors",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'ltm' has no attribute {name!r}; public names: {', '.join(__all__)}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
