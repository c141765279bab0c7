"""Devices and dtypes: which are available, what they are called, and which matrix products are fast."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ltm.errors import UserError, did_you_mean
from ltm.progress import count

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

DTYPES = ("float32", "bfloat16", "float16", "float64")

Matmul = Literal["auto", "bfloat16", "float32"]
"""Dtype of matrix products; `auto` is the fastest on the device, see `matmul_dtype`."""

CLEARLY_FASTER = 1.2
"""`auto` chooses bfloat16 if its products are at least this many times faster than float32 products."""

ELEMENTS_PER_THREAD = 2**15
"""The minimum number of elements that torch gives a thread (at::internal::GRAIN_SIZE)."""

HOPELESS = 4.0
"""If a small bfloat16 product is more than this many times slower than float32, no larger one is tried."""


def check_dtype(name: str) -> None:
    """Raise UserError unless `name` is a supported dtype for weights."""
    if name not in DTYPES:
        raise did_you_mean("dtype", str(name), DTYPES)


def check_device(device: str) -> None:
    """Raise UserError unless these models can run on `device` here."""
    kind, colon, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (colon and not (kind == "cuda" and number.isdecimal())):
        raise UserError(
            f"device {device!r}: expected cpu, cuda or cuda:N, the devices that are supported; here: {_available()}"
        )
    if kind == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise UserError(f"device {device}: torch sees no GPU here; use --device cpu")
        if int(number or 0) >= (gpus := torch.cuda.device_count()):
            raise UserError(f"device {device}: torch sees {count(gpus, 'GPUs')} here, the last is cuda:{gpus - 1}")


def _available() -> str:
    """The devices of this machine, by the names that are understood."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ", ".join(["cpu", *(f"cuda:{number}" for number in range(count))])


def choose_device(wish: str | None) -> str:
    """Choose an available device: the one requested, or the GPU by default.

    Where there is no GPU, `cuda` and `cuda:0`, which is lm-eval's default, mean the CPU, and a warning says so.

    Raises:
        UserError: `wish` is neither a CPU nor a GPU, or a GPU number that does not exist.
    """
    import torch

    if wish is None or wish == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if str(wish) in ("cuda", "cuda:0") and not torch.cuda.is_available():
        log.warning("device %s: there is no GPU here, using the CPU", wish)
        return "cpu"
    check_device(str(wish))
    return str(wish)


def device_name(device: str | torch.device) -> str:
    """The name of the GPU, or of the processor with the number of threads in use."""
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
    """Limit torch to the threads that work of this size can use, and yield their number; `OMP_NUM_THREADS` wins.

    On a CPU torch splits an operation into pieces of 32,768 elements at least. Further threads only wait
    for each other, which for a tiny model on a large machine costs more than the work.

    Args:
        elements: number of elements in the hidden states of a batch.
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

    `auto` on a GPU is bfloat16 from compute capability 8.0 on. On a CPU two products are timed, once per process and
    shape, in tens of milliseconds: a processor's feature flags do not tell whether the math library has fast kernels
    for it, or whether they pay off at these sizes.

    Args:
        inputs, outputs: shape of the products, (tokens, inputs) by (inputs, outputs).
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

    # Without a fast kernel a product takes a hundred times as long, so the first one tried is small.
    for rows, (width, height), limit in ((64, (128, 128), 1 / HOPELESS), (256, (inputs, outputs), CLEARLY_FASTER)):
        seconds = {dtype: product_seconds(dtype, rows, width, height) for dtype in (torch.float32, torch.bfloat16)}
        if seconds[torch.float32] < limit * seconds[torch.bfloat16]:
            return torch.float32
    return torch.bfloat16


def flops_per_second(width: int, *, seconds: float = 0.2) -> float:
    """Measure the rate of matrix products of a model of this width, in the dtype that it would be trained in here.

    On the GPU if there is one, else on the CPU with all threads in use.

    Args:
        seconds: about how long to measure; a first product may take longer.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = matmul_dtype("auto", device, inputs=width, outputs=4 * width)
    left, right = (torch.ones(rows, width, dtype=dtype, device=device) for rows in (1024, 4 * width))
    best, ends = math.inf, time.perf_counter() + seconds
    for trial in itertools.count():
        began = time.perf_counter()
        torch.nn.functional.linear(left, right)
        if device.type == "cuda":
            torch.cuda.synchronize()
        ended = time.perf_counter()
        if trial:  # the first one warms up
            best = min(best, ended - began)
            if ended > ends or trial >= 200:
                break
    return 2 * left.numel() * right.shape[0] / best


def product_seconds(dtype: torch.dtype, rows: int, inputs: int, outputs: int, *, repeats: int = 5) -> float:
    """Time a product (rows, inputs) by (inputs, outputs) on the CPU: seconds, the best of `repeats` after a warm-up."""
    import torch

    left, right = torch.ones(rows, inputs, dtype=dtype), torch.ones(outputs, inputs, dtype=dtype)
    times = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        torch.nn.functional.linear(left, right)
        times.append(time.perf_counter() - began)
    return min(times[1:])
