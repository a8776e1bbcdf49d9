"""A timer whose times are a known function of sizes, and a net for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

import alds_onnx
from alds_onnx import Measuring, Result, Runtime
from alds_onnx.cuts import Cut, LayerShape, Scheme
from alds_onnx.evaluate.sessions import Execution, RunError
from alds_onnx.graph.files.load import load_model
from alds_onnx.graph.shapes import infer, known_shapes
from alds_onnx.options.run import silent
from alds_onnx.settings import Settings
from alds_onnx.steps.clock import Clock
from alds_onnx.steps.survey import make_survey
from alds_onnx.steps.timing import make_layer_times
from alds_onnx.timing.layer_models import IsolatedLayer
from alds_onnx.timing.layer_times import LayerTimes
from alds_onnx.timing.timer import OrtTimer, Timing

CHANNELS, LAYERS = 48, 3
CALL = 1000.0
SHAPE = LayerShape(out_features=CHANNELS, in_channels=CHANNELS, kernel=(3, 3))
DENSE = float(SHAPE.num_parameters)
ONE = OrtTimer(Execution(threads=1))


@dataclass
class FakeTimes:
    """Nanoseconds: one for each entry of a dense weight; `slowness` for each of a factor."""

    slowness: float = 0.9
    slices: float = 1.0
    slow_schemes: frozenset[Scheme] = frozenset()
    fails: bool = False
    asked: int = 0

    def time_layer(self, layer: IsolatedLayer, cuts: Sequence[Cut]) -> list[Timing]:
        self.asked += len(cuts)
        if self.fails:
            raise RunError("no")
        dense = float(np.prod(layer.skeleton.graph.initializer[0].dims))
        return [Timing(dense=dense + CALL, cut=self.cut(c) + CALL) for c in cuts]

    def cut(self, cut: Cut) -> float:
        factor = self.slowness * (self.slices if cut.num_slices > 1 else 1.0)
        if cut.scheme in self.slow_schemes:
            factor *= 1000.0
        return factor * cut.num_parameters(SHAPE)


def make_net() -> ModelProto:
    """Convolutions whose spectra fall at different rates."""
    generator, nodes, weights, tensor = np.random.default_rng(0), [], [], "x"
    for i in range(LAYERS):
        u = np.linalg.qr(generator.standard_normal((CHANNELS, CHANNELS)))[0]
        v = np.linalg.qr(generator.standard_normal((9 * CHANNELS, CHANNELS)))[0]
        array = u * np.exp(-(0.02 + 0.03 * i) * np.arange(CHANNELS)) @ v.T
        weight = array.reshape(CHANNELS, CHANNELS, 3, 3).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        made = f"t{i}"
        nodes.append(helper.make_node("Conv", [tensor, f"w{i}"], [made], made, pads=[1] * 4))
        tensor = made
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, 6, 6])
    y = helper.make_tensor_value_info(tensor, TensorProto.FLOAT, [1, CHANNELS, 6, 6])
    graph = helper.make_graph(nodes, "net", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def layer_times(net: ModelProto) -> LayerTimes:
    """Times of the layers of the net, not yet measured."""
    settings = Settings(cr=0.4, threads=1, measuring=Measuring.ALWAYS)
    survey = make_survey(load_model(net), settings)
    shapes = known_shapes(survey.index, infer(net))
    times = make_layer_times(survey, shapes, {}, settings, Clock(silent))
    assert times is not None
    return times


def measured(net: ModelProto, **options: object) -> Result:
    given = {"cr": 0.4, "target": Runtime.NONE, "measuring": Measuring.ALWAYS, "dry_run": True}
    return alds_onnx.compress(net, **given | options)  # type: ignore[arg-type]


def cuts_of(result: Result) -> dict[str, Cut]:
    return {row.name: row.cut for row in result.plan.layers if row.cut}
