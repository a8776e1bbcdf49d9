"""The net, and the times of its layers."""

from __future__ import annotations

import pytest
from onnx import ModelProto

from alds_onnx import runtimes
from alds_onnx.timing.timer import OrtTimer
from tests.timing.fake import FakeTimes, make_net


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTimes:
    """Times on a machine with blocks of 16 channels."""
    made = FakeTimes()
    monkeypatch.setattr(
        OrtTimer, "time_layer", lambda self, layer, cuts: made.time_layer(layer, cuts)
    )
    monkeypatch.setattr(runtimes, "_block_of_this_machine", lambda: 16)
    return made


@pytest.fixture(scope="session")
def net() -> ModelProto:
    """Three convolutions."""
    return make_net()
