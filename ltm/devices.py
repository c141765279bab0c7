"""Devices and dtypes: what is here, what it is called, and which matrix products are fast on it."""

from __future__ import annotations

import functools
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ltm.errors import UserError, did_you_mean

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16", "float64")

Matmul = Literal["auto", "bfloat16", "float32"]
"""Dtype of matrix products; `auto` is the fastest that the device really has, see `matmul_dtype`."""

CLEARLY_FASTER = 1.2
"""How many times faster than float32 products bfloat16 ones must be before `auto` takes them."""

ELEMENTS_PER_THREAD = 2**15
"""The fewest elements that torch gives to a thread (at::internal::GRAIN_SIZE)."""

HOPELESS = 4.0
"""How many times slower a small bfloat16 product must be for no larger one to be tried."""


def check_dtype(name: str) -> None:
    """Raise UserError unless weights can be of that dtype."""
    if name not in DTYPES:
        raise did_you_mean("dtype", str(name), DTYPES)


def check_device(device: str) -> None:
    """Raise UserError unless these models can run on `device` here."""
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not (kind == "cuda" and number.isdecimal())):
        raise UserError(f"device {device!r}: expected cpu, cuda or cuda:N, the devices that are supported")
    if kind == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError(f"device {device}: torch sees no GPU here; use --device cpu")
        if int(number or 0) >= (found := torch.cuda.device_count()):
            raise UserError(f"device {device}: torch sees {found} GPUs here, the last is cuda:{found - 1}")


def choose_device(wish: str | None) -> str:
    """A device that is here: the one wished for, the GPU when nothing is, the CPU where there is no GPU.

    Raises:
        UserError: `wish` is neither a CPU nor a GPU, or a GPU of a number that is not there.
    """
    import torch

    if wish is None or wish == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if str(wish).startswith("cuda") and not torch.cuda.is_available():
        log.warning("device %s: there is no GPU here, using the CPU", wish)
        return "cpu"
    check_device(str(wish))
    return str(wish)


def device_name(device: str | torch.device) -> str:
    """What computes: the GPU's name, or the processor and how many threads of it."""
    import torch

    if str(device).startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{processor()}, {torch.get_num_threads()} threads"


def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@contextmanager
def threads_for(elements: int) -> Iterator[int]:
    """Compute on no more threads than work of that size can use, and say how many; `OMP_NUM_THREADS` has the last word.

    On a CPU torch splits an operation into pieces of 32,768 elements at least. Threads beyond that do nothing but wait
    for each other, which for a tiny model on a large machine costs more than the work.

    Args:
        elements: of the hidden states of a batch.
    """
    import torch

    before = torch.get_num_threads()
    threads = before if "OMP_NUM_THREADS" in os.environ else max(1, min(before, -(-elements // ELEMENTS_PER_THREAD)))
    torch.set_num_threads(threads)
    try:
        yield threads
    finally:
        torch.set_num_threads(before)


def matmul_dtype(setting: str, device: torch.device, *, inputs: int, outputs: int) -> torch.dtype:
    """The dtype that a `Matmul` setting means on `device`.

    `auto` on a GPU is bfloat16 from compute capability 8.0 on. On a CPU two products are timed, once a process for each
    shape, in some tens of milliseconds: what a processor says of itself does not tell whether the library that
    multiplies has fast kernels for it, nor whether they pay at these sizes.

    Args:
        inputs, outputs: shape of the products in question, (tokens, inputs) by (inputs, outputs).
    """
    import torch

    if setting != "auto":
        return getattr(torch, setting)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
    return _fastest_on_cpu(inputs, outputs)


@functools.lru_cache(maxsize=16)
def _fastest_on_cpu(inputs: int, outputs: int) -> torch.dtype:
    import torch

    # A product that has no fast kernel takes a hundred times as long, so the first one tried is small.
    for rows, (width, height), limit in ((64, (128, 128), 1 / HOPELESS), (256, (inputs, outputs), CLEARLY_FASTER)):
        seconds = {dtype: product_seconds(dtype, rows, width, height) for dtype in (torch.float32, torch.bfloat16)}
        if seconds[torch.float32] < limit * seconds[torch.bfloat16]:
            return torch.float32
    return torch.bfloat16


def product_seconds(dtype: torch.dtype, rows: int, inputs: int, outputs: int, *, repeats: int = 5) -> float:
    """Seconds of one product (rows, inputs) by (inputs, outputs) on the CPU, the best of `repeats` after a first."""
    import torch

    left, right = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
    times = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        torch.nn.functional.linear(left, right)
        times.append(time.perf_counter() - began)
    return min(times[1:])
