"""Small models from ONNX text, and the comparisons that the tests of the graph modules share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime as ort
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, numpy_helper

from alds_onnx.cuts import Cut
from alds_onnx.decompose.factorize import factorize
from alds_onnx.graph.find import find_layers
from alds_onnx.graph.layers import Layer, Skipped, read_matrix
from alds_onnx.graph.rewrite import Replacement
from alds_onnx.graph.scopes import ModelIndex, subgraphs
from alds_onnx.graph.shapes import infer, known_ranks

Array = npt.NDArray[Any]

NOWHERE = Path("/nowhere")

#: Largest relative L2 difference that is rounding: some hundred operations of one unit roundoff
#: (6e-8, 1e-16, 5e-4) each. A wrong slice, axis or attribute gives about 1.
ROUNDING = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12, np.dtype(np.float16): 2e-2}

ONNX_TYPES = {"float32": "float", "float64": "double", "float16": "float16"}


def normal(*shape: int, dtype: str = "float32", seed: int = 0) -> Array:
    """Standard normal numbers, the same for the same shape and seed."""
    generator = np.random.default_rng([seed, *shape])
    return generator.standard_normal(shape).astype(dtype)


def parse(
    graph: str,
    constants: Mapping[str, Array] | None = None,
    *,
    opset: int = 17,
    ir: int = 8,
    imports: str = "",
) -> ModelProto:
    """Parse ONNX text, and add initializers with the given names."""
    header = f'<ir_version: {ir}, opset_import: ["" : {opset}{imports}]>\n'
    model = onnx.parser.parse_model(header + graph)
    for name, array in (constants or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def layers_of(model: ModelProto, folder: Path = NOWHERE) -> tuple[Layer | Skipped, ...]:
    """All rows of a model, with the ranks that shape inference knows."""
    index = ModelIndex(model)
    return find_layers(index, folder, known_ranks(index, infer(model)))


def only_layer(model: ModelProto, folder: Path = NOWHERE) -> Layer:
    """The one layer of a model, which can be decomposed."""
    (layer,) = layers_of(model, folder)
    assert isinstance(layer, Layer), layer.reason
    return layer


def replacements_of(
    model: ModelProto,
    num_slices: int = 1,
    rank: int | None = 2,
    folder: Path = NOWHERE,
) -> list[Replacement]:
    """Every weight cut to a rank (None: the full rank), at most to what its shape allows."""
    index = ModelIndex(model)
    groups: dict[object, list[Layer]] = {}
    for layer in layers_of(model, folder):
        if isinstance(layer, Layer):
            groups.setdefault(layer.weight_key, []).append(layer)
    return [_replacement(index, tuple(g), num_slices, rank, folder) for g in groups.values()]


def _replacement(
    index: ModelIndex, layers: tuple[Layer, ...], num_slices: int, rank: int | None, folder: Path
) -> Replacement:
    first = layers[0]
    k = num_slices if num_slices in first.slice_counts else 1
    full = min(first.shape.out_features, first.shape.num_columns // k)
    cut = Cut(num_slices=k, rank=full if rank is None else min(rank, full))
    matrix = read_matrix(index, first, folder)
    return Replacement(layers=layers, factors=factorize(matrix, first.shape, cut))


def run(model: ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    """The outputs in onnxruntime, on one thread."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, dict(feeds)))


def assert_close(actual: Iterable[Array], expected: Iterable[Array]) -> None:
    """Same shapes, same types, and equal to rounding in the norm of each output."""
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        y, z = b.astype(np.float64), a.astype(np.float64)
        assert np.linalg.norm(y - z) <= ROUNDING[b.dtype] * np.linalg.norm(y)


def bodies(model: ModelProto) -> Iterator[GraphProto | FunctionProto]:
    """All graphs and functions, an outer one before those in it."""
    waiting: list[GraphProto | FunctionProto] = [model.graph, *model.functions]
    while waiting:
        body = waiting.pop(0)
        yield body
        waiting.extend(graph for node in body.node for _, graph in subgraphs(node))


def nodes(model: ModelProto, op: str = "") -> list[NodeProto]:
    """All nodes of an operator, of all graphs and functions."""
    return [node for body in bodies(model) for node in body.node if op in ("", node.op_type)]


def names_in(model: ModelProto) -> set[str]:
    """Every tensor that is an input, an initializer, or made by a node."""
    found: set[str] = set()
    for body in bodies(model):
        found.update(name for node in body.node for name in node.output)
        if isinstance(body, GraphProto):
            found.update(tensor.name for tensor in body.initializer)
            found.update(value.name for value in body.input)
    return found


def remainder(model: ModelProto, known: set[str], touched: set[str]) -> bytes:
    """What is left of a model without the tensors that are not `known`, or `touched`."""
    rest = ModelProto()
    rest.CopyFrom(model)

    def gone(name: str) -> bool:
        return name in touched or name not in known

    for body in bodies(rest):
        _keep(body.node, lambda node: not any(gone(name) for name in node.output))
        _keep(body.value_info, lambda value: value.name not in touched)
        if isinstance(body, GraphProto):
            _keep(body.initializer, lambda tensor: not gone(tensor.name))
            _keep(body.input, lambda value: not gone(value.name))
            _keep(body.quantization_annotation, lambda a: a.tensor_name not in touched)
    return rest.SerializeToString(deterministic=True)


def _keep(entries: Any, wanted: Any) -> None:
    for i in reversed(range(len(entries))):
        if not wanted(entries[i]):
            del entries[i]


def assert_rest_equal(before: ModelProto, after: ModelProto, touched: set[str]) -> None:
    """Everything is equal, field for field, that has to do with no `touched` tensor.

    Parameters
    ----------
    before, after
        Models.
    touched
        The weights that are gone, what stood between them and their readers, and the outputs of
        the decomposed nodes.
    """
    known = names_in(before)
    assert remainder(before, known, touched) == remainder(after, known, touched)
