"""Layers in isolation: what they are known by, and that their cuts run in their place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper, parser

from alds_onnx.cuts import Cut, LayerShape, Scheme
from alds_onnx.evaluate.sessions import Execution, Session
from alds_onnx.graph.find import find_layers
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.scopes import ModelIndex
from alds_onnx.graph.shapes import infer, known_ranks
from alds_onnx.timing.layer_models import IsolatedLayer, isolate

CONV = "y = Conv<{}>(x, w, b)"


def model(body: str, x: str, *weights: tuple[str, tuple[int, ...]]) -> ModelProto:
    text = f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[{x}] x) => (float[] y) {{ {body} }}
    """
    made = parser.parse_model(text)
    made.graph.output[0].type.tensor_type.ClearField("shape")
    generator = np.random.default_rng(0)
    for name, dims in weights:
        array = generator.standard_normal(dims).astype(np.float32)
        made.graph.initializer.append(numpy_helper.from_array(array, name))
    return onnx.shape_inference.infer_shapes(made)


def taken(made: ModelProto, shape: tuple[int, ...], position: int = 0) -> IsolatedLayer:
    index = ModelIndex(made)
    layers = find_layers(index, Path(), known_ranks(index, infer(made)))
    layer = layers[position]
    assert isinstance(layer, Layer)
    return isolate(index, layer, shape)


def conv(attributes: str = "pads=[1,1,1,1]", activation: str = "") -> ModelProto:
    body = CONV.format(attributes)
    if activation:
        body = body.replace("y =", "h =") + f" y = {activation}(h)"
    return model(body, "1, 16, 8, 8", ("w", (16, 16, 3, 3)), ("b", (16,)))


SHAPE = (1, 16, 8, 8)


def test_layers_that_take_the_same_time_have_the_same_key() -> None:
    two = model(
        "h = Conv<pads=[1,1,1,1]>(x, w, b) y = Conv<pads=[1,1,1,1]>(h, v, c)",
        "1, 16, 8, 8",
        ("w", (16, 16, 3, 3)),
        ("b", (16,)),
        ("v", (16, 16, 3, 3)),
        ("c", (16,)),
    )
    assert taken(two, SHAPE, 0).key == taken(two, SHAPE, 1).key == taken(conv(), SHAPE).key


def test_what_time_depends_on_is_in_the_key() -> None:
    keys = {
        taken(conv(), SHAPE).key,
        taken(conv(), (1, 16, 9, 8)).key,
        taken(conv(), (2, 16, 8, 8)).key,
        taken(conv("pads=[1,1,1,1], strides=[2,2]"), SHAPE).key,
        taken(conv("pads=[2,2,2,2], dilations=[2,2]"), SHAPE).key,
        taken(conv(activation="Relu"), SHAPE).key,
        taken(conv(activation="Sigmoid"), SHAPE).key,
        taken(model("y = Conv(x, w)", "1, 16, 8, 8", ("w", (16, 16, 3, 3))), SHAPE).key,
    }
    assert len(keys) == 8


def test_an_activation_that_something_else_reads_too_is_left_out() -> None:
    read_twice = conv(activation="Relu")
    read_twice.graph.output.append(onnx.ValueInfoProto(name="h"))
    read_twice.graph.output[1].type.tensor_type.elem_type = TensorProto.FLOAT
    assert taken(read_twice, SHAPE).key == taken(conv(), SHAPE).key


@pytest.mark.parametrize(
    ("made", "shape", "cuts"),
    [
        (conv("pads=[1,1,1,1], strides=[2,1]", "Relu"), SHAPE, [(1, 3), (4, 2), (16, 1)]),
        (
            model("y = Conv(x, w)", "1, 8, 20", ("w", (12, 8, 3))),
            (1, 8, 20),
            [(1, 2), (2, 2)],
        ),
        (
            model("y = MatMul(x, w)", "2, 7, 24", ("w", (24, 16))),
            (2, 7, 24),
            [(1, 3), (3, 2)],
        ),
        (
            model("y = MatMul(w, x)", "24, 7", ("w", (16, 24))),
            (24, 7),
            [(1, 3), (3, 2)],
        ),
        (
            model("y = Gemm<transB=1, alpha=0.5>(x, w, b)", "5, 24", ("w", (16, 24)), ("b", (16,))),
            (5, 24),
            [(1, 3), (2, 2)],
        ),
        (
            model("y = Gemm<transB=1>(w, x, b)", "5, 24", ("w", (16, 24)), ("b", (16, 1))),
            (5, 24),
            [(1, 3), (2, 2)],
        ),
    ],
)
def test_a_layer_and_its_cuts_run(
    made: ModelProto, shape: tuple[int, ...], cuts: list[tuple[int, int]]
) -> None:
    own = taken(made, shape)
    x = np.ones(shape, np.float32)
    variants = own.decomposed([Cut(num_slices=k, rank=j) for k, j in cuts])
    sessions = [Session(m, Path(), Execution(threads=1)) for m in (own.dense(), *variants)]
    dense, *others = [session.run({"x": x})[0] for session in sessions]
    for (k, j), variant, output in zip(cuts, variants, others, strict=True):
        assert output.shape == dense.shape
        sizes = [np.prod(w.dims) for w in variant.graph.initializer if len(w.dims) > 1]
        f, columns = _sizes(own)
        assert j * columns in sizes
        assert k * j * f in sizes


@pytest.mark.parametrize(
    "cut",
    [
        Cut(num_slices=2, rank=3, scheme=Scheme.DECODE),
        Cut(num_slices=4, rank=2, scheme=Scheme.SPLIT_HEIGHT),
        Cut(num_slices=1, rank=5, scheme=Scheme.SPLIT_WIDTH),
        Cut(num_slices=1, rank=5, scheme=Scheme.TUCKER2, rank_out=7),
    ],
    ids=lambda cut: cut.scheme.value,
)
def test_a_cut_of_every_scheme_runs_with_all_its_entries(cut: Cut) -> None:
    own = taken(conv("pads=[1,1,1,1], strides=[2,1]", "Relu"), SHAPE)
    (variant,) = own.decomposed([cut])
    x = np.ones(SHAPE, np.float32)
    dense, other = (
        Session(m, Path(), Execution(threads=1)).run({"x": x})[0] for m in (own.dense(), variant)
    )
    assert other.shape == dense.shape
    entries = sum(np.prod(w.dims) for w in variant.graph.initializer if len(w.dims) > 1)
    shape = LayerShape(out_features=16, in_channels=16, kernel=(3, 3))
    assert entries == cut.num_parameters(shape)


def _sizes(own: IsolatedLayer) -> tuple[int, int]:
    """f and c·kh·kw of the layer."""
    index = ModelIndex(own.dense())
    (layer,) = find_layers(index, Path(), {})
    assert isinstance(layer, Layer)
    return layer.shape.out_features, layer.shape.num_columns
