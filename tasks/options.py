"""The options of an evaluation, checked once, whether they come from the command line or from Python."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ltm.config import whole_number
from ltm.data.reading import Reading
from ltm.data.split import PASSAGE
from ltm.devices import check_device, check_dtype
from ltm.errors import UserError, did_you_mean

PROTOCOLS = ("suite", "published")
LEAST: Mapping[str, int] = {
    "seed": 0,
    "draws": 1,
    "batch_size": 1,
    "excerpt": PASSAGE,
    "limit_blocks": 1,
    "limit_problems": 1,
    "chunk": 1,
    "samples": 1,
    "shots": 0,
    "new_tokens": 1,
    "prompt_tokens": 1,
    "show_samples": 1,
}
"""The smallest allowed value of each whole number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """Options of one run of `ltm-eval`, named as on the command line; None means the model's or the task's default.

    Attributes:
        protocol: `published` also scores each perplexity task as the family's public code does.
        settings: `field=value` of the measured models' configs (`--set`), each perhaps after a family or a model and
            a dot; see `ltm.model_store.settings_of`.

    Raises:
        UserError: a value is out of range or no number; names the option. A number may be given as text.
    """

    output: Path = Path("results")
    data_dir: Path | None = None
    max_bytes: int | str | None = None
    newlines: str = "kept"
    text_column: str | None = None
    seed: int = 0
    draws: int | None = None
    batch_size: int | str = "auto"
    device: str | None = None
    dtype: str = "float32"
    settings: tuple[str, ...] = ()
    headline_only: bool = False
    excerpt: int | None = None
    limit_blocks: int | None = None
    eos_between_documents: bool = False
    protocol: str = "suite"
    chunk: int | None = None
    proposal: str | None = None
    samples: int | None = None
    temperature: float | None = None
    show_samples: int | None = None
    top_p: float | None = None
    new_tokens: int | None = None
    prompt_tokens: int | None = None
    scorer: str | None = None
    mauve: str | None = None
    shots: int | None = None
    exemplars: str | None = None
    controls: str | None = None
    limit_problems: int | None = None

    @property
    def reading(self) -> Reading:
        """How text files are read."""
        return Reading(max_bytes=self.max_bytes, newlines=self.newlines, text_column=self.text_column)

    def __post_init__(self) -> None:
        _ = self.reading  # checks its options
        check_dtype(self.dtype)
        if self.device is not None:
            check_device(self.device)
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and not (name == "batch_size" and value == "auto"):
                object.__setattr__(self, name, whole_number(flag(name), value, least=least))
        for name in ("temperature", "top_p"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _real(flag(name), value))
        for name in ("headline_only", "eos_between_documents"):
            if not isinstance(value := getattr(self, name), bool):
                raise UserError(f"{flag(name)}: expected True or False, found {value!r}")
        if self.protocol not in PROTOCOLS:
            raise did_you_mean("value for --protocol", self.protocol, PROTOCOLS)
        if isinstance(self.settings, str):
            raise UserError(f"--set: expected a list of field=value, found the text {self.settings!r}")
        for name, kind in (("output", Path), ("data_dir", Path), ("settings", tuple)):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, kind(value))


def _real(name: str, value: Any) -> float:
    """Return a number, given as such or as text, that is at least 0."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise UserError(f"{name}: expected a number of at least 0, found {value!r}")
    return number


def flag(name: str) -> str:
    """Return the command-line flag of an option: `--limit-blocks` for `limit_blocks`."""
    return "--" + {"settings": "set"}.get(name, name).replace("_", "-")


def option_names() -> list[str]:
    """Return the names of all options."""
    return [field.name for field in fields(EvalOptions)]
