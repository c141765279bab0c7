"""Checkpoints in torch's format with any pickle inside, and pickles spelt out instruction by instruction."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def number(value: int) -> bytes:
    data = value.to_bytes(16, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def named(name: str) -> bytes:
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def shape(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    sizes: tuple[int, ...],
    strides: tuple[int, ...],
    *,
    offset: int = 0,
    key: str = "0",
    length: int = 6,
    kind: str = "torch.FloatStorage",
) -> bytes:
    """Instructions that make a tensor as `torch.save` writes them."""
    storage = b"(" + text("storage") + named(kind) + text(key) + text("cpu") + number(length) + b"tQ"
    rest = number(offset) + shape(sizes) + shape(strides) + b"\x89" + named("collections.OrderedDict") + b")R"
    return named("torch._utils._rebuild_tensor_v2") + b"(" + storage + rest + b"tR"


def write_archive(
    path: Path,
    instructions: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    compression: int = zipfile.ZIP_STORED,
    others: Mapping[str, bytes] | None = None,
) -> Path:
    """Write a checkpoint whose pickle has these instructions, without the first and the last."""
    entries = {"data.pkl": b"\x80\x02" + instructions + b".", "version": b"3\n", **(others or {})}
    entries |= {f"data/{key}": value for key, value in (storages or {}).items()}
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, value in entries.items():
            file.writestr(f"archive/{name}", value)
    return path
