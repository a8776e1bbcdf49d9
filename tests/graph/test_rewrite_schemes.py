"""Every scheme: what is built computes what the original does with W replaced by Ŵ."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import ModelProto

from alds_onnx.cuts import Cut, LayerShape, Scheme, distinct
from alds_onnx.decompose.factorize import factorize
from alds_onnx.graph.accounting import num_parameters, work_of_layers
from alds_onnx.graph.layers import Layer, read_matrix
from alds_onnx.graph.rewrite import Replacement, rewrite, stored_factors, with_composed_weights
from alds_onnx.graph.scopes import ModelIndex
from alds_onnx.graph.shapes import infer, known_shapes
from tests.graph.builders import (
    NOWHERE,
    ONNX_TYPES,
    Array,
    assert_close,
    layers_of,
    nodes,
    normal,
    only_layer,
    parse,
    run,
)

F, C = 12, 8
SIZES = {1: (17,), 2: (9, 11), 3: (6, 5, 7)}
#: Of every axis in turn, so that no two axes of a kernel have the same.
STRIDES, DILATIONS, PADS = (2, 1, 3), (1, 2, 1), ((1, 2), (0, 1), (2, 0))
ATTRIBUTES = (
    *("", "strides", "dilations", "pads", "strides dilations pads"),
    *("SAME_UPPER", "SAME_LOWER", "VALID", "SAME_UPPER strides", "VALID strides dilations"),
)
KERNELS = [(3,), (3, 3), (3, 2), (1, 3), (5, 1), (3, 1, 2), (2, 3, 2)]


def attributes_of(names: str, axes: int) -> str:
    found = []
    for name in names.split():
        values = {
            "strides": STRIDES[:axes],
            "dilations": DILATIONS[:axes],
            "pads": [p[0] for p in PADS[:axes]] + [p[1] for p in PADS[:axes]],
        }.get(name)
        found.append(f'auto_pad = "{name}"' if values is None else f"{name} = {[*values]}")
    return f"<{', '.join(found)}>" if found else ""


def conv(
    kernel: tuple[int, ...], names: str = "", *, bias: bool = True, dtype: str = "float32"
) -> tuple[ModelProto, dict[str, Array]]:
    axes, kind = len(kernel), ONNX_TYPES[dtype]
    dims = ", ".join(map(str, (2, C, *SIZES[axes])))
    result = ", ".join("abc"[:axes])
    constants = {"W": normal(F, C, *kernel, dtype=dtype)}
    constants |= {"B": normal(F, dtype=dtype)} if bias else {}
    operands = "x, W, B" if bias else "x, W"
    model = parse(
        f"g ({kind}[{dims}] x) => ({kind}[2, {F}, {result}] y) "
        f"{{ [conv] y = Conv{attributes_of(names, axes)}({operands}) }}",
        constants,
    )
    return model, {"x": normal(2, C, *SIZES[axes], dtype=dtype, seed=1)}


def cuts(shape: LayerShape, *, full: bool) -> list[Cut]:
    """One for each scheme that makes a difference, and number of slices."""
    found = []
    for scheme in distinct(shape, Scheme):
        for k in (1, 4) if scheme.structure.sliced(shape) else (1,):
            projections = scheme.structure.projections(
                Cut(num_slices=k, rank=1, scheme=scheme, rank_out=1)
            )
            highest = [one.fold.sizes(shape).full_rank(k) for one in projections]
            small = (3, 5) if len(highest) == 2 else (2,)
            ranks = highest if full else map(min, highest, small)
            rank, rank_out = [*ranks, 0][:2]
            found.append(Cut(num_slices=k, rank=rank, scheme=scheme, rank_out=rank_out))
    return found


def replacement(model: ModelProto, cut: Cut) -> Replacement:
    layer = only_layer(model)
    matrix = read_matrix(ModelIndex(model), layer, NOWHERE)
    return Replacement(layers=(layer,), factors=factorize(matrix, layer.shape, cut))


@pytest.mark.parametrize("names", ATTRIBUTES)
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_every_scheme_is_exact(kernel: tuple[int, ...], names: str) -> None:
    """At a low rank against Ŵ, at the full one against the original."""
    model, feeds = conv(kernel, names, bias=kernel != (3, 2))
    for full in (False, True):
        for cut in cuts(only_layer(model).shape, full=full):
            done = [replacement(model, cut)]
            actual = rewrite(model, done)
            onnx.checker.check_model(actual, full_check=True)
            expected = model if full else with_composed_weights(model, done)
            assert_close(run(actual, feeds), run(expected, feeds))
            (*first, last) = nodes(actual, "Conv")
            assert (last.name, list(last.output)) == ("conv", ["y"])
            assert all(len(node.input) == 2 for node in first), "only the last has a bias"


@pytest.mark.parametrize("dtype", ["float16", "float64"])
@pytest.mark.parametrize("scheme", Scheme, ids=lambda s: s.value)
def test_other_types(scheme: Scheme, dtype: str) -> None:
    """Doubles in ONNX's reference evaluator: onnxruntime's CPU provider has no such Conv."""
    model, feeds = conv((3, 3), "pads", dtype=dtype)
    (cut,) = [c for c in cuts(only_layer(model).shape, full=False)
              if c.scheme is scheme and c.num_slices == 1]  # fmt: skip
    layer = only_layer(model)
    found = replacement(model, cut)
    done = [Replacement(layers=(layer,), factors=stored_factors(layer, found.factors))]
    models = rewrite(model, done), with_composed_weights(model, done)
    if dtype == "float64":
        evaluate = [onnx.reference.ReferenceEvaluator(m).run(None, feeds) for m in models]
    else:
        evaluate = [run(m, feeds) for m in models]
    assert_close(*evaluate)


@pytest.mark.parametrize("names", ["", "strides pads", "SAME_UPPER strides"])
@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_what_it_costs_is_what_is_built(kernel: tuple[int, ...], names: str) -> None:
    """Parameters and multiply-accumulates of the new nodes, counted node by node."""
    model, _ = conv(kernel, names, bias=False)
    index = ModelIndex(model)
    (work,) = work_of_layers(index, known_shapes(index, infer(model))).values()
    layer = only_layer(model)
    for cut in cuts(layer.shape, full=False):
        new = ModelIndex(rewrite(model, [replacement(model, cut)]))
        parts = work_of_layers(new, known_shapes(new, infer(new.model))).values()
        assert len(parts) == len(nodes(new.model))
        assert work.of_cut(layer.shape, cut) == sum(part.macs for part in parts)
        assert num_parameters(new) == cut.num_parameters(layer.shape)


def test_layers_that_share_a_weight_share_its_factors() -> None:
    """Two convolutions with strides of their own."""
    model = parse(
        "g (float[1, 8, 9, 9] x) => (float[1, 12, a, b] y, float[1, 12, c, d] z) "
        "{ y = Conv<strides = [2, 1]>(x, W) z = Conv<pads = [1, 0, 1, 2]>(x, W) }",
        {"W": normal(F, C, 3, 3)},
    )
    index = ModelIndex(model)
    layers = tuple(layer for layer in layers_of(model) if isinstance(layer, Layer))
    matrix = read_matrix(index, layers[0], NOWHERE)
    feeds = {"x": normal(1, C, 9, 9)}
    for cut in cuts(layers[0].shape, full=False):
        factors = factorize(matrix, layers[0].shape, cut)
        done = [Replacement(layers=layers, factors=factors)]
        actual = rewrite(model, done)
        assert len(actual.graph.initializer) == (3 if cut.rank_out else 2)
        assert_close(run(actual, feeds), run(with_composed_weights(model, done), feeds))


def test_work_without_input_sizes() -> None:
    """Where a convolution reads at its inputs' positions, these must be known."""
    model, _ = conv((3, 3))
    index = ModelIndex(model)
    shapes = known_shapes(index, infer(model))
    known = {key: dims for key, dims in shapes.items() if key.name != "x"}
    (work,) = work_of_layers(index, known).values()
    shape = only_layer(model).shape
    assert work.of_cut(shape, Cut(num_slices=1, rank=1)) is not None
    assert work.of_cut(shape, Cut(num_slices=1, rank=1, scheme=Scheme.DECODE)) is None


def test_same_input_same_bytes() -> None:
    model, _ = conv((3, 3), "pads")
    for cut in cuts(only_layer(model).shape, full=False):
        first, second = (
            rewrite(model, [replacement(model, cut)]).SerializeToString(deterministic=True)
            for _ in range(2)
        )
        assert first == second


def test_half_precision_holds_the_factors_of_large_weights() -> None:
    """Entries of some thousands: singular values, and a core that has them, would overflow."""
    model, _ = conv((3, 3), dtype="float16")
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0]) * np.float16(8000)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "W"))
    for cut in cuts(only_layer(model).shape, full=True):
        for tensor in rewrite(model, [replacement(model, cut)]).graph.initializer:
            assert np.isfinite(onnx.numpy_helper.to_array(tensor)).all()
