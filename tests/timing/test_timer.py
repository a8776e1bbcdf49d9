"""The timer of onnxruntime: what it runs, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto

from alds_onnx.cuts import Cut, LayerShape
from alds_onnx.evaluate.sessions import Execution
from alds_onnx.timing import timer
from alds_onnx.timing.timer import OrtTimer, Timing
from tests.timing.test_layer_models import SHAPE, conv, taken


def test_what_a_timing_says() -> None:
    timing = Timing(dense=2000.0, cut=1500.0)
    assert (timing.saved, timing.ratio) == (500, 0.75)


def test_the_setup_names_all_that_times_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = OrtTimer(Execution(threads=1)), OrtTimer(Execution(threads=2))
    before = one.setup
    assert before != two.setup
    assert ort.__version__ in before
    monkeypatch.setattr(timer.ort, "__version__", "0.0.0")
    assert one.setup != before


@pytest.mark.parametrize("together", [1, 3, 100])
def test_each_cut_gets_its_time(monkeypatch: pytest.MonkeyPatch, together: int) -> None:
    loaded: list[int] = []

    def session(model: ModelProto, folder: Path, execution: Execution) -> float:
        return float(sum(np.prod(w.dims) for w in model.graph.initializer if len(w.dims) > 1))

    def run(sessions: Sequence[float], feeds: Any, seconds: float, **turns: int) -> Any:
        loaded.append(len(sessions))
        return 1e-9 * np.array(sessions)[:, None] * np.ones(5)

    monkeypatch.setattr(timer, "_TOGETHER", together)
    monkeypatch.setattr(timer, "Session", session)
    monkeypatch.setattr(timer, "time_in_turns", run)
    cuts = [Cut(num_slices=k, rank=rank) for k in (1, 2) for rank in (1, 3, 5, 7)]
    found = OrtTimer(Execution(threads=1)).time_layer(taken(conv(), SHAPE), cuts)
    shape = LayerShape(out_features=16, in_channels=16, kernel=(3, 3))
    assert [t.cut for t in found] == pytest.approx([cut.num_parameters(shape) for cut in cuts])
    assert [t.dense for t in found] == pytest.approx([shape.num_parameters] * len(cuts))
    assert max(loaded) == 1 + min(together, len(cuts))


def test_layers_and_models_are_run() -> None:
    one, layer = OrtTimer(Execution(threads=1)), taken(conv(), SHAPE)
    (timing,) = one.time_layer(layer, [Cut(num_slices=1, rank=3)])
    assert timing.dense > 0
    assert timing.cut > 0
