"""Which dtype `auto` means, how many threads work of a size gets, and what is said of unsupported devices."""

from __future__ import annotations

import os

import pytest
import torch

from ltm import devices
from ltm.devices import ELEMENTS_PER_THREAD, choose_device, matmul_dtype, threads_for
from ltm.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def seconds(monkeypatch):
    """Measured seconds of a product in float32 and in bfloat16: set by the test; the products asked for are listed."""
    asked: list[tuple[torch.dtype, int, int, int]] = []
    times = {torch.float32: 1.0, torch.bfloat16: 1.0}

    def measured(dtype: torch.dtype, rows: int, inputs: int, outputs: int) -> float:
        asked.append((dtype, rows, inputs, outputs))
        return times[dtype]

    monkeypatch.setattr(devices, "product_seconds", measured)
    devices._fastest_on_cpu.cache_clear()
    yield times, asked
    devices._fastest_on_cpu.cache_clear()


@pytest.mark.parametrize(
    ("bfloat16", "expected"),
    [(0.4, torch.bfloat16), (0.9, torch.float32), (1.0, torch.float32), (100.0, torch.float32)],
    ids=["clearly faster", "hardly faster", "alike", "without a kernel"],
)
def test_auto_is_bfloat16_only_where_that_is_clearly_faster(seconds, bfloat16, expected) -> None:
    times, _ = seconds
    times[torch.bfloat16] = bfloat16
    assert matmul_dtype("auto", CPU, inputs=512, outputs=2752) == expected


def test_products_are_measured_once_and_a_hopeless_dtype_on_a_small_one_only(seconds) -> None:
    times, asked = seconds
    times[torch.bfloat16] = 100.0
    for _ in range(3):
        matmul_dtype("auto", CPU, inputs=512, outputs=2752)
    assert len(asked) == 2 and all(rows * inputs * outputs < 2**21 for _, rows, inputs, outputs in asked)
    times[torch.bfloat16] = 0.5
    matmul_dtype("auto", CPU, inputs=64, outputs=96)
    assert asked[-1][2:] == (64, 96)  # the shape that is used


def test_what_is_asked_for_is_not_measured(seconds) -> None:
    assert matmul_dtype("bfloat16", CPU, inputs=8, outputs=8) == torch.bfloat16
    assert matmul_dtype("float32", CPU, inputs=8, outputs=8) == torch.float32
    assert not seconds[1]


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_gpus_have_bfloat16_from_compute_capability_8(monkeypatch, capability, expected) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert matmul_dtype("auto", torch.device("cuda"), inputs=8, outputs=8) == expected


def test_the_measurement_takes_tens_of_milliseconds() -> None:
    assert devices.product_seconds(torch.float32, 64, 128, 128) < 0.1


def test_tiny_work_gets_few_threads_and_no_more_than_there_are(monkeypatch) -> None:
    counts: list[int] = [8]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: counts[-1])
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    for elements, expected in ((1, 1), (ELEMENTS_PER_THREAD, 1), (2 * ELEMENTS_PER_THREAD, 2), (2**40, 8)):
        with threads_for(elements) as threads:
            assert threads == expected == counts[-1]
        assert counts[-1] == 8
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "8")
    with threads_for(1) as threads:
        assert threads == 8


def test_devices_that_are_not_supported_are_named(monkeypatch) -> None:
    with pytest.raises(UserError, match="device 'mps': expected cpu, cuda or cuda:N"):
        choose_device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device(None) == choose_device("cuda:0") == "cpu"
