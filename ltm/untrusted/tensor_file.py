"""Read what a safetensors file says it holds, believing nothing: names, dtypes, shapes and where the bytes are.

The header is checked against the size of the file, so whoever allocates what it names needs no more than the file has.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltm.errors import UserError
from ltm.untrusted import json_text
from ltm.untrusted.display import shown
from ltm.untrusted.regular_files import opened

_DTYPES = {
    **{"F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2)},
    **{"F8_E4M3": ("float8_e4m3fn", 1), "F8_E5M2": ("float8_e5m2", 1), "C64": ("complex64", 8)},
    **{f"I{bits}": (f"int{bits}", bits // 8) for bits in (8, 16, 32, 64)},
    **{f"U{bits}": (f"uint{bits}", bits // 8) for bits in (8, 16, 32, 64)},
    "BOOL": ("bool", 1),
}
_LIMITS = json_text.Limits(bytes=32 << 20, depth=4, string=1000, values=1_500_000)
_DIMENSIONS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One tensor of a file.

    Attributes:
        dtype: as torch names it, such as `float32`.
        start, end: where its bytes are in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def entries(path: Path) -> dict[str, Entry]:
    """Read the header of a safetensors file.

    Raises:
        UserError: there is no such file, or it is something else; tensors overlap, leave gaps or have another size.
    """
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise _wrong(path, f"a header of at most {max(0, size - 8):,} bytes, as the file has", shown(length))
        if length > _LIMITS.bytes:
            raise _wrong(path, f"a header of at most {_LIMITS.bytes:,} bytes", f"{length:,}")
        text = file.read(length)
    header = json_text.table(json_text.parse(text, where=f"{path}, header", limits=_LIMITS), where=f"{path}, header")
    header.pop("__metadata__", None)
    first = 8 + length
    found = {name: _entry(path, name, given, first) for name, given in header.items()}
    at = first
    for name, entry in sorted(found.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != at:
            raise _wrong(
                path, f"tensors one after the other, {shown(name)} at byte {at - first:,}", entry.start - first
            )
        at = entry.end
    if at != size:
        raise _wrong(path, f"{at:,} bytes, as its header says", f"{size:,}")
    return found


def _entry(path: Path, name: str, given: Any, first: int) -> Entry:
    table = json_text.table(given, where=f"{path}, {shown(name)}", fields=("dtype", "shape", "data_offsets"))
    kind, shape, offsets = table["dtype"], table["shape"], table["data_offsets"]
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise _wrong(path, f"a dtype of {shown(name)} among {', '.join(_DTYPES)}", shown(kind))
    dtype, size = _DTYPES[kind]
    if not _whole(shape) or len(shape) > _DIMENSIONS:
        raise _wrong(path, f"a shape of {shown(name)} of at most {_DIMENSIONS} whole numbers", shown(shape))
    if not _whole(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * size:
        raise _wrong(path, f"the bytes of {str(shape)[:80]} {dtype} for {shown(name)}", f"those at {str(offsets)[:80]}")
    return Entry(dtype=dtype, shape=tuple(shape), start=first + offsets[0], end=first + offsets[1])


def _whole(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _wrong(path: Path, expected: str, found: object) -> UserError:
    return UserError(f"{path}: expected {expected}, found {found}")
