"""The tensors of a checkpoint, which count only once checked: their digest, shapes, dtypes and values.

Everything about a model is kept under the digest of its weights: results, cached answers, twins. So the digest is
computed from the tensors themselves, never taken from the file that records it.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltm.config import canonical_json, leaves, to_dict
from ltm.errors import UserError
from ltm.files import sha256_file
from ltm.untrusted import tensor_file
from ltm.untrusted.display import bare, shown
from ltm.untrusted.regular_files import opened
from ltm.untrusted.tensor_file import Entry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ltm.api import LanguageModel

LONGEST_BLOCK = 1 << 20
"""Most tokens of a block: a longer one is no model but a way to fill memory."""
LARGEST_SETTING = 1 << 24
"""Largest whole number in a config, unless the weights have as many elements, or it is a seed."""
LARGEST_REAL = 1e30
"""Largest number in a config: float32 has room for it, and for products with others."""
_BESIDE = 1 << 28
"""Bytes of tables that any model may compute beside its weights, such as masks and rotations."""
_BLOCK = 1 << 22


def weights_digest(weights: Mapping[str, Tensor], *, floats: torch.dtype | None = None) -> str:
    """The SHA-256 of names, shapes, dtypes and bytes of the tensors, in the order of their names.

    Args:
        floats: the dtype in which tensors of real numbers are digested, one at a time; None for that of each.
    """
    import torch

    state = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        tensor = tensor.to(floats) if floats is not None and tensor.is_floating_point() else tensor
        state.update(canonical_json([name, list(tensor.shape), str(tensor.dtype)]).encode())
        state.update(tensor.flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """The `weights_digest` of the tensors of a safetensors file, without loading them.

    Raises:
        UserError: see `ltm.untrusted.tensor_file.entries`.
    """
    return _once(_digest_of_tensors, path)


def sha256(path: Path, *, most: int | None = None) -> str:
    """The `sha256_file` of a file of at most `most` bytes, computed once. Raises UserError if it is none."""
    return _once(sha256_file, path, most)


def _once(digest: Callable[[Path], str], path: Path, most: int | None = None) -> str:
    # Commands ask several times for the same digests, which take a second for large weights.
    with opened(path, most=most) as file:
        found = os.fstat(file.fileno())
    return _remembered(digest, path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@functools.lru_cache(maxsize=256)
def _remembered(digest: Callable[[Path], str], path: Path, *state_of_file: int) -> str:
    return digest(path)


def _digest_of_tensors(path: Path) -> str:
    state = hashlib.sha256()
    with opened(path) as file:
        for name, entry in sorted(tensor_file.entries(path).items()):
            state.update(canonical_json([name, list(entry.shape), f"torch.{entry.dtype}"]).encode())
            file.seek(entry.start)
            for start in range(entry.start, entry.end, _BLOCK):
                state.update(file.read(min(_BLOCK, entry.end - start)))
    return state.hexdigest()


def build(cls: type[LanguageModel], config: Any, stored: Mapping[str, Entry], *, where: str) -> LanguageModel:
    """Build a model for the weights of a file, which are still to be loaded.

    It is first built without memory and compared with the file, so that no config costs more than its weights.

    Args:
        stored: the header of the file.
        where: the checkpoint, for messages.

    Raises:
        UserError: the config makes no model, or one with other tensors than the file has.
    """
    import torch

    shapes = {name: entry.shape for name, entry in stored.items()}
    largest = max(LARGEST_SETTING, *(math.prod(shape) for shape in shapes.values()))
    try:
        for name, value in leaves(to_dict(config)).items():
            most = largest if isinstance(value, int) else LARGEST_REAL
            if isinstance(value, int | float) and abs(value) > most and "seed" not in name:
                raise UserError(f"{name} must be at most {most:,}, found {shown(value)}")
        with torch.device("meta"), limited_to(len(stored)):
            sketch = cls(config)
            sketch.allocate(shapes)
        check_memory(sketch, sum(entry.end - entry.start for entry in stored.values()))
        tensors = sketch.state_dict().items()
        check_alike(
            {name: (tuple(value.shape), str(value.dtype)) for name, value in tensors},
            {name: (entry.shape, f"torch.{entry.dtype}") for name, entry in stored.items()},
        )
        model = cls(config)
        model.allocate(shapes)
        return model
    except UserError as error:
        raise UserError(f"{where} does not fit its config: {error}") from error
    # What a family's code raises at settings that nobody meant is up to that code.
    except Exception as error:
        raise UserError(
            f"{where}: its config makes no model of the family {cls.family}: {type(error).__name__}: {bare(str(error))}"
        ) from error


@contextmanager
def limited_to(tensors: int) -> Iterator[None]:
    """Stop what builds a network with far more parts than `tensors`, by UserError: a billion layers take for ever."""
    from torch.nn.modules import module

    most, count = 1000 + 32 * tensors, 0

    def note(*_: Any) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise UserError(f"the network has over {most:,} parts, and the file {tensors:,} tensors")

    hooks = [
        module.register_module_parameter_registration_hook(note),
        module.register_module_module_registration_hook(note),
        module.register_module_buffer_registration_hook(note),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def check_memory(model: LanguageModel, stored: int) -> None:
    """Raise UserError if blocks, or tables computed beside weights of `stored` bytes, would take memory without end."""
    kept = set(map(id, model.state_dict(keep_vars=True).values()))
    beside = sum(buffer.nbytes for buffer in model.buffers() if id(buffer) not in kept)
    if beside > max(_BESIDE, 4 * stored):
        raise UserError(f"it computes tables of {beside:,} bytes beside weights of {stored:,}")
    if model.block_length > LONGEST_BLOCK:
        raise UserError(f"blocks have at most {LONGEST_BLOCK:,} tokens, found {model.block_length:,}")


def check_alike(
    expected: Mapping[str, tuple[tuple[int, ...], str]], found: Mapping[str, tuple[tuple[int, ...], str]]
) -> None:
    """Raise UserError at the first tensor, by name, whose shape or dtype is not as expected."""
    for name in sorted(expected.keys() | found.keys()):
        before, after = expected.get(name), found.get(name)
        if before != after:
            same_shape = before and after and before[0] == after[0]
            wanted, given = (part and part[1 if same_shape else 0] for part in (before, after))
            raise UserError(f"{bare(name)} expected {wanted}, found {given}")


def check_finite(model: LanguageModel, *, where: str) -> None:
    """Raise UserError if a parameter is NaN or infinite, or a buffer is NaN."""
    parameters = dict(model.named_parameters())
    for name, value in model.state_dict().items():
        if value.is_floating_point() and bool((~value.isfinite() if name in parameters else value.isnan()).any()):
            raise UserError(f"{where}: {name} has values that are NaN or infinite; train again")


def read(path: Path) -> dict[str, Tensor]:
    """Load all tensors of a safetensors file.

    Raises:
        UserError: see `ltm.untrusted.tensor_file.entries`.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensor_file.entries(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
