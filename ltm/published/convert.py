"""`ltm-convert SOURCE DIRECTORY`: a checkpoint of ours from pickled weights that others published.

The pickle is read by `ltm.untrusted.pickled_tensors`, which executes nothing in it. Afterwards
`--model FAMILY:DIRECTORY` scores the weights, and nobody needs the pickle again.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm.errors import UserError, did_you_mean, run_command

if TYPE_CHECKING:
    from torch import Tensor

    from ltm.api import LanguageModel
    from ltm.untrusted.pickled_tensors import Checkpoint

FAMILIES = ("ar", "bd3lm", "duo", "ltm", "mdlm", "sedd")
EPILOG = """examples:
  ltm-convert mdlm.ckpt converted/mdlm --family mdlm
  ltm-convert sedd-small/pytorch_model.bin converted/sedd --family sedd
  ltm-convert latest.pt converted/ltm --family ltm --set posterior.steps=16

Next to SOURCE, config.json says what weights do not, and tokenizer.json of ours takes the place of GPT-2's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a file holds of a model: public tensors, which of several they are, and the shape where it is written."""

    tensors: dict[str, Tensor]
    which: str
    arguments: Any = None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="ltm-convert", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("source", type=Path, help="a .ckpt of Lightning, a pytorch_model.bin, or a .pt of the LTM's trainer")
    p.add_argument("directory", type=Path, help="where the checkpoint is written; it must not have one")
    p.add_argument("--family", required=True, help=f"what the weights are: {', '.join(FAMILIES)}")
    p.add_argument(
        "--weights",
        choices=("ema", "raw"),
        help="of a Lightning checkpoint: the moving average, which published numbers are of (default), or as trained",
    )
    p.add_argument("--set", metavar="FIELD=VALUE", action="append", default=[], help="a setting of the model")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ltm-convert`."""
    return run_command(lambda: _main(parser().parse_args(arguments)))


def _main(options: argparse.Namespace) -> int:
    folder = convert(
        options.source, options.directory, family=options.family, weights=options.weights, settings=options.set
    )
    name = f"{options.family}:{options.directory}"
    print(f"converted: {folder}")
    print(f"next: {shlex.join(['ltm-eval', '--model', name, '--tasks', 'ptb,wikitext'])}")
    return 0


def convert(
    source: Path, directory: Path, *, family: str, weights: str | None = None, settings: Sequence[str] = ()
) -> Path:
    """Write a checkpoint of ours and return its step folder.

    Args:
        family: what the weights are; nothing in them says.
        weights: `ema` or `raw` of a Lightning checkpoint; None for the average.
        settings: `field=value` of the model's config.

    Raises:
        UserError: the file is damaged, hostile, or of something else; there is a checkpoint already; or the tokenizer
            cannot be found. Nothing is written then.
    """
    from ltm.published.opening import tokenizer_of
    from ltm.training import checkpoint
    from ltm.training.weights import check_alike, check_finite, sha256
    from ltm.untrusted import pickled_tensors

    if family not in FAMILIES:
        raise did_you_mean("family", family, FAMILIES)
    if checkpoint.steps(directory) or (directory / checkpoint.MANIFEST).exists():
        raise UserError(f"{directory} has a checkpoint already: name another directory, or delete it")
    held = pickled_tensors.read(source)
    found = _found(held, family, weights)
    try:
        model, state = _built(family, found, source.parent / "config.json", settings)
        check_alike(
            {name: (tuple(t.shape), "") for name, t in model.state_dict().items()},
            {name: (tuple(t.shape), "") for name, t in state.items()},
        )
        tokenizer = tokenizer_of(source.parent, model.vocab_size)
        model.load_state_dict(state)
        check_finite(model, where=family)
    except (UserError, ValueError) as error:
        raise UserError(f"{source}: {error}") from error
    origin = {"source": source.name, "files": {source.name: sha256(source)}, "weights": found.which}
    return checkpoint.save(
        directory,
        0,
        name=f"{family}:{directory.resolve().name}",
        model=model,
        tokenizer=tokenizer,
        weights=model.state_dict(),
        state={},
        training={**checkpoint.trained_elsewhere(), "complete": True, "origin": origin},
    )


def _found(held: Checkpoint, family: str, weights: str | None) -> Found:
    """The weights in a file: of Lightning, of the LTM's trainer, or of a bare state dict."""
    from ltm.published import lightning

    content = held.content if isinstance(held.content, dict) else {}
    if "state_dict" in content:
        which = weights or "ema"
        pick = lightning.ema_weights if which == "ema" else lightning.raw_weights
        return Found(tensors=pick(held), which=which)
    if weights is not None:
        raise UserError(f"--weights {weights}: {held.where} is no checkpoint of Lightning and has one set of weights")
    if "model_args" in content or family == "ltm":
        return Found(tensors=held.tensors("model"), which="model", arguments=held.at("model_args"))
    return Found(tensors=held.tensors(), which="state dict")


def _built(
    family: str, found: Found, config_file: Path, settings: Sequence[str]
) -> tuple[LanguageModel, dict[str, Tensor]]:
    """A model of the family, and its state dict from public tensors."""
    from ltm import registry
    from ltm.config import with_settings
    from ltm.published import official_ltm
    from ltm.published.described import describe, read_config
    from ltm.published.opening import network_of

    cls: Any = registry.model_family(family)
    if (found.arguments is not None) != (family == "ltm"):
        is_one = "a" if found.arguments is not None else "no"
        raise UserError(f"this is {is_one} checkpoint of the LTM's public trainer; say so by --family")
    if family == "ltm":
        config: Any = official_ltm.config_of(found.arguments, found.tensors)
        return cls(with_settings(config, settings)), official_ltm.renamed(found.tensors, config.decoder.layers)
    said = read_config(config_file) if config_file.is_file() else None
    described = describe({name: tuple(t.shape) for name, t in found.tensors.items()}, said)
    model = cls(with_settings(cls.of_published(described), settings))
    return model, network_of(described, found.tensors)


if __name__ == "__main__":
    raise SystemExit(main())
