"""What all tests share: one thread, no network, a private home."""

from __future__ import annotations

import socket

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
# The same examples every time, and none left behind; no deadline, since a busy machine is no fault.
hypothesis.settings.register_profile("suite", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path_factory):
    """Tests neither reach the network nor touch a user's models and caches."""
    monkeypatch.setenv("LTM_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    connect = socket.socket.connect

    def local_only(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests do not use the network: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)
