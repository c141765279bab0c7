"""Read the tensors of a checkpoint that `torch.save` wrote and anyone may have changed; nothing in it is executed.

Such files (`.ckpt` of Lightning, `.pt`, `pytorch_model.bin`) are zip files with a pickle and the bytes of the tensors.
`torch.load` refuses those that also hold pickled configurations or tokenizers, or else executes whatever the pickle
says. Here everything but tensors and plain values becomes a stand-in that does nothing.

What is refused, in a `UserError`: names that are there to do harm (`os.system`, `builtins.eval`, `torch.load`; see
`harmful_names`), damaged files, compressed entries, storages and views that are not within their bytes, what exceeds
`pickle_stack.Limits`, and the format of torch before 1.6. What is ignored: every other class and function, also those
that would make something else than plain tensors (sparse, quantized, subclasses), and attributes of state dicts.
"""

from __future__ import annotations

import math
import mmap
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from ltm.errors import UserError
from ltm.untrusted import pickled_values, stored_zip
from ltm.untrusted.display import bare, shown
from ltm.untrusted.pickle_stack import Limits, Malformed
from ltm.untrusted.pickled_values import Hooks, StandIn
from ltm.untrusted.regular_files import opened

TENSORS = 200_000
"""Most tensors of a file."""
SHARING = 16
"""All tensors together have at most this many times the bytes of the file: they may share bytes, as tied weights do."""
SMALL = 1 << 20
"""Bytes that tensors may have however small the file is."""
_VERSION = 10  # the newest that torch reads
_STORAGES = {
    **{"DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16"},
    **{"LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8"},
    **{"ByteStorage": "uint8", "BoolStorage": "bool"},
    **{"ComplexDoubleStorage": "complex128", "ComplexFloatStorage": "complex64"},
}
_DTYPES = {
    *_STORAGES.values(),
    *("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
    "float8_e8m0fnu",
}
_UNTYPED = "torch.storage.UntypedStorage"
_STORAGE_DTYPES = {
    **{
        f"{module}.{name}": getattr(torch, dtype)
        for module in ("torch", "torch.cuda")
        for name, dtype in _STORAGES.items()
    },
    _UNTYPED: torch.uint8,
}
_PLAIN = {"torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer"}
_DIMENSIONS = 64
_LARGEST = 1 << 62


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        where: the file, for messages.
        content: dicts, lists, tuples, sets, numbers, strings, dtypes and tensors, and a `StandIn` for everything else.
            Tensors are on the CPU and need no gradients; they map the file's bytes, so it must not change while they
            are in use. Those that shared bytes share them; writing to them does not change the file.
        stand_ins: names of the classes and functions that stand-ins replaced, sorted.
    """

    where: str
    content: Any
    stand_ins: tuple[str, ...]

    def at(self, *keys: str) -> Any:
        """Return the value below these keys of nested dicts.

        Raises:
            UserError: there is none.
        """
        value = self.content
        for i, key in enumerate(keys):
            place = f"{self.where}, {'.'.join(keys[:i])}" if i else self.where
            if not isinstance(value, dict):
                raise UserError(f"{place}: expected a dict with {key!r}, found {_kind(value)}")
            if key not in value:
                there = ", ".join(shown(name, most=40) for name in list(value)[:20]) or "nothing"
                raise UserError(f"{place}: expected {key!r}, found only {there}")
            value = value[key]
        return value

    def tensors(self, *keys: str) -> dict[str, torch.Tensor]:
        """Return the dict of tensors below these keys, such as a state dict.

        Raises:
            UserError: there is none, or something in it is no tensor.
        """
        table, place = self.at(*keys), f"{self.where}, {'.'.join(keys) or 'content'}"
        if not isinstance(table, dict):
            raise UserError(f"{place}: expected a dict of tensors, found {_kind(table)}")
        for name, value in table.items():
            if not isinstance(name, str):
                raise UserError(f"{place}: expected tensors by name, found the key {shown(name)}")
            if not isinstance(value, torch.Tensor):
                raise UserError(f"{place}: expected a tensor {shown(name)}, found {_kind(value)}")
        return dict(table)

    def tensor_list(self, *keys: str) -> list[torch.Tensor]:
        """Return the list of tensors below these keys.

        Raises:
            UserError: there is none, or something in it is no tensor.
        """
        values, place = self.at(*keys), f"{self.where}, {'.'.join(keys) or 'content'}"
        if not isinstance(values, list | tuple):
            raise UserError(f"{place}: expected a list of tensors, found {_kind(values)}")
        for i, value in enumerate(values):
            if not isinstance(value, torch.Tensor):
                raise UserError(f"{place}: expected a tensor at {i}, found {_kind(value)}")
        return list(values)


def _kind(value: Any) -> str:
    if isinstance(value, StandIn):
        return f"an object of {bare(value.name)}, which is not loaded"
    return "a tensor" if isinstance(value, torch.Tensor) else shown(value)


def read(path: Path, *, checksums: bool = True, limits: Limits = Limits()) -> Checkpoint:
    """Read a checkpoint that torch 1.6 or later wrote.

    Args:
        checksums: whether the bytes of tensors are compared with their CRC-32, which reads them all once. Files that
            were saved without, by `torch.serialization.set_crc32_options(False)`, are refused otherwise.

    Raises:
        UserError: there is no such file, it is something else, is damaged, or names what is there to do harm.
    """
    where = bare(str(path))
    with opened(path) as file:
        data = _mapped(file, where)
    archive = _Archive(data, where, checksums)
    rebuilt = {f"torch._utils.{name}": function for name, function in archive.functions().items()}
    hooks = Hooks(
        constants={f"torch.{name}": getattr(torch, name) for name in _DTYPES if hasattr(torch, name)},
        functions={
            **rebuilt,
            "torch._tensor._rebuild_from_type_v2": archive.of_type,
            "torch.Size": _size,
            "torch.device": _device,
        },
        inert=frozenset(_STORAGE_DTYPES) | _PLAIN,
        persistent=archive.storage,
    )
    content, stand_ins = pickled_values.load(archive.pickle(limits), where=where, hooks=hooks, limits=limits)
    return Checkpoint(where, content, stand_ins)


def _mapped(file: IO[bytes], where: str) -> memoryview:
    magic = file.read(16)
    if magic[:1] == b"\x80" and magic[2:].startswith(b"\x8a\n"):
        raise UserError(
            f"{where} is in the format of torch before 1.6, which is not read here. Where it can be trusted, convert "
            "it: `torch.save(torch.load(OLD, weights_only=True), NEW)`"
        )
    if not magic.startswith(b"PK\x03\x04"):
        raise UserError(f"{where}: expected a checkpoint that torch.save wrote, found something else")
    try:
        # A private copy of each page that is written to: what changes a tensor does not change the file.
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {where}: {getattr(error, 'strerror', None) or error}") from None


class _Archive:
    """The zip file: its pickle, its storages, and the tensors made of them."""

    def __init__(self, data: memoryview, where: str, checksums: bool):
        self.data, self.where, self.checksums = data, where, checksums
        entries = stored_zip.entries(data, where=where)
        folders = [name.removesuffix("/data.pkl") for name in entries if name.endswith("/data.pkl")]
        if len(folders) != 1:
            raise UserError(f"{where}: expected a checkpoint with one data.pkl, found {len(folders)}")
        inside = f"{folders[0]}/"
        self.entries = {name.removeprefix(inside): entry for name, entry in entries.items() if name.startswith(inside)}
        if "constants.pkl" in self.entries:
            raise UserError(f"{where}: expected a checkpoint, found a TorchScript program")
        version, order = self.text("version"), self.text("byteorder")
        if version is not None and not (version.isdecimal() and int(version) <= _VERSION):
            raise UserError(f"{where}: expected a format up to version {_VERSION}, found {shown(version)}")
        if order not in (None, "little", "big"):
            raise UserError(f"{where}: expected the byte order little or big, found {shown(order)}")
        self.swapped = (order or "little") != sys.byteorder
        self.storages: dict[str, torch.Tensor] = {}
        self.most = max(len(data), SMALL)
        self.count = self.total = 0

    def text(self, name: str) -> str | None:
        """Return an entry of a few characters."""
        entry = self.entries.get(name)
        return None if entry is None else str(self.data[entry.start : entry.end][:20], "latin-1").strip()

    def pickle(self, limits: Limits) -> bytes:
        entry = self.entries["data.pkl"]
        size = entry.end - entry.start
        if size > limits.bytes:
            raise UserError(f"{self.where}: expected a data.pkl of at most {limits.bytes:,} bytes, found {size:,}")
        self.check("data.pkl", entry)
        return bytes(self.data[entry.start : entry.end])

    def check(self, name: str, entry: stored_zip.Entry) -> None:
        if self.checksums and zlib.crc32(self.data[entry.start : entry.end]) != entry.checksum:
            raise UserError(
                f"{self.where}: expected bytes of {shown(name)} that fit their checksum, found damaged ones"
            )

    def storage(self, reference: Any) -> Any:
        """Return the storage as a tensor of one dimension; a stand-in for one of a dtype that is not read."""
        match reference:
            case ("storage", StandIn(arguments=None) as kind, str() as key, str(), int() as length):
                pass
            case _:
                raise Malformed("a reference to a storage", "something else")
        if kind.name not in _STORAGE_DTYPES:
            return StandIn(kind.name, ())
        dtype = _STORAGE_DTYPES[kind.name]
        if key not in self.storages:
            self.storages[key] = self.read(f"data/{key}", dtype, length, untyped=kind.name == _UNTYPED)
        found = self.storages[key]
        if found.dtype != dtype or len(found) != length:
            raise Malformed(f"storage {shown(key)} with one dtype and length", "two")
        return found

    def read(self, name: str, dtype: torch.dtype, length: int, *, untyped: bool) -> torch.Tensor:
        entry = self.entries.get(name)
        if entry is None:
            raise Malformed(f"the bytes of storage {shown(name)}", "none")
        size = entry.end - entry.start
        if length < 0 or length * dtype.itemsize != size:
            raise Malformed(f"{shown(length)} values of {dtype} in {shown(name)}", f"{size:,} bytes")
        if self.swapped and untyped and size:
            raise Malformed(f"the byte order of this machine for untyped storage {shown(name)}", "the other")
        self.check(name, entry)
        if not size:
            return torch.empty(0, dtype=dtype)
        data: Any = self.data[entry.start : entry.end]
        if entry.start % dtype.itemsize or self.swapped:
            data = bytearray(data)
        if dtype is torch.bool:
            # Any other byte than 0 and 1 is a value that no bool has.
            return torch.frombuffer(data, dtype=torch.uint8).ne(0)
        values = torch.frombuffer(data, dtype=torch.uint8).view(dtype)
        if self.swapped:
            values.untyped_storage().byteswap(dtype)
        return values

    def functions(self) -> dict[str, Any]:
        """Return what makes tensors, by its name in `torch._utils`."""
        return {
            "_rebuild_tensor": lambda arguments: self.view(*arguments) if len(arguments) == 4 else NotImplemented,
            "_rebuild_tensor_v2": lambda arguments: self.plain(arguments, 6),
            "_rebuild_tensor_v3": lambda arguments: self.plain(arguments, 7),
            "_rebuild_parameter": lambda arguments: _first(arguments, 3),
            "_rebuild_parameter_with_state": lambda arguments: _first(arguments, 4),
        }

    def of_type(self, arguments: tuple[Any, ...]) -> Any:
        """Make a tensor with attributes, which are dropped."""
        match arguments:
            case (StandIn(name=function, arguments=None), StandIn(name=kind, arguments=None), tuple() as inner, _):
                if kind in _PLAIN and function.removeprefix("torch._utils.") in self.functions():
                    return self.functions()[function.removeprefix("torch._utils.")](inner)
        return NotImplemented

    def plain(self, arguments: tuple[Any, ...], count: int) -> Any:
        """Make a tensor from `count` arguments, the dtype last if there are seven, and perhaps metadata behind them."""
        # Metadata say that values are to be conjugated or negated, which weights are not.
        metadata = arguments[count] if len(arguments) == count + 1 else None
        if len(arguments) not in (count, count + 1) or not (
            metadata is None or (type(metadata) is dict and not metadata)
        ):
            return NotImplemented
        storage, offset, shape, strides = arguments[:4]
        if count == 7 and isinstance(storage, torch.Tensor):
            dtype = arguments[6]
            if not isinstance(dtype, torch.dtype) or storage.dtype != torch.uint8 or len(storage) % dtype.itemsize:
                raise Malformed("a dtype that fits its storage", _kind(dtype))
            storage = (
                storage.view(dtype)
                if storage.storage_offset() == 0 and len(storage)
                else storage.new_empty(0, dtype=dtype)
            )
        return self.view(storage, offset, shape, strides)

    def view(self, storage: Any, offset: Any, shape: Any, strides: Any) -> Any:
        if isinstance(storage, StandIn):
            return StandIn(storage.name, ())
        if not isinstance(storage, torch.Tensor) or storage.dim() != 1 or storage.storage_offset():
            raise Malformed("a storage to make a tensor of", _kind(storage))
        if not _whole(shape) or not _whole(strides) or len(shape) != len(strides) or not _whole((offset,)):
            raise Malformed(f"shape and strides of at most {_DIMENSIONS} whole numbers", "something else")
        last = offset + (sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if 0 not in shape else -1)
        if last >= len(storage):
            raise Malformed(f"a tensor within its storage of {len(storage):,} values", f"one up to {shown(last + 1)}")
        size = math.prod(n or 1 for n in shape) * storage.dtype.itemsize
        self.count, self.total = self.count + 1, self.total + size
        if self.count > TENSORS or size > self.most or self.total > SHARING * self.most:
            raise Malformed(
                f"at most {TENSORS:,} tensors, of at most {self.most:,} bytes each and {SHARING} times that together",
                "more",
            )
        return storage.as_strided(shape, strides, offset)


def _whole(values: Any) -> bool:
    if not isinstance(values, tuple) or len(values) > _DIMENSIONS:
        return False
    return all(type(value) is int and 0 <= value < _LARGEST for value in values)


def _first(arguments: tuple[Any, ...], count: int) -> Any:
    found = arguments[0] if len(arguments) == count else None
    return found if isinstance(found, torch.Tensor | StandIn) else NotImplemented


def _size(arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if len(arguments) == 1 and isinstance(arguments[0], tuple) else NotImplemented


def _device(arguments: tuple[Any, ...]) -> Any:
    return arguments[0] if len(arguments) in (1, 2) and isinstance(arguments[0], str) else NotImplemented
