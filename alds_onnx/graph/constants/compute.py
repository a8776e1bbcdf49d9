"""Which tensors depend on constants only, and what they are.

A tensor is constant if the nodes that lead to it are deterministic and read nothing but constants:
`g * v / |v|` of weight normalization, `W + B A` of LoRA, a Slice of one weight for Q, K and V, int8
numbers with their scale. Left out are random operators, control flow, operators of other domains,
and calls of the model's functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from alds_onnx.errors import ModelError
from alds_onnx.graph.scopes import (
    DEFAULT_DOMAINS,
    Definition,
    Key,
    Kind,
    ModelIndex,
    Site,
    constant_tensor,
    has_arguments,
    subgraphs,
)
from alds_onnx.graph.tensors import num_bytes, read_array

Array = npt.NDArray[np.generic]

#: Operators that only move the entries of their first input.
LINKS = frozenset({"Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})

_RANDOM = frozenset(
    {
        *("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),
        *("Multinomial", "Bernoulli"),
    }
)
# Their implementation in Python goes over the entries one by one.
_SLOW = frozenset(
    {
        *("Resize", "Upsample", "GridSample", "RoiAlign", "NonMaxSuppression", "Col2Im", "Conv"),
        *("ConvTranspose", "DeformConv", "ConvInteger", "QLinearConv", "AveragePool", "MaxPool"),
        *("LpPool", "MaxUnpool", "LSTM", "GRU", "RNN", "DFT", "STFT", "LRN", "TopK", "Unique"),
        *("TfIdfVectorizer", "StringNormalizer", "ImageDecoder", "Scatter", "ScatterElements"),
        *("ScatterND", "CenterCropPad", "AffineGrid", "GatherND", "Det"),
    }
)
_MOST_SLOW_ENTRIES = 1 << 14
# The reference implementation knows them from opset 19 on, with what older ones mean.
_FIRST_OPSET = {"DequantizeLinear": 19, "QuantizeLinear": 19}
# More than any exporter leaves in front of a weight.
_MOST_NODES = 1000
# All tensors on the way to a weight, over the constants that they are made from.
_GROWTH, _ALWAYS_ALLOWED = 16, 64 << 20
# Shapes, axes and the like, whose values decide the size of what is made.
_MOST_SHAPE_ENTRIES = 1024

ARGUMENT = "its weight depends on an argument of the function"


class NotComputedError(ModelError):
    """A constant that cannot be computed here; the message says why."""


def reason_variable(index: ModelIndex, definition: Definition) -> str:
    """Why a tensor is not constant; "" if it is."""
    if index.variable is None:
        index.variable = {}
        for site, node in index.walk():
            reason = _reason_of_node(index, site, node)
            index.variable.update((Key(site.scope, name), reason) for name in node.output if name)
    if definition.kind is Kind.NODE:
        undefined = f"its weight '{definition.key.name}' is not defined"
        return index.variable.get(definition.key, undefined)
    if definition.kind is Kind.INITIALIZER:
        return ""
    if index.scopes[definition.key.scope].is_function:
        return ARGUMENT
    if definition.kind is Kind.SPARSE:
        return "its weight is a sparse initializer"
    return f"its weight '{definition.key.name}' is an input, not a constant"


def _reason_of_node(index: ModelIndex, site: Site, node: NodeProto) -> str:
    if has_arguments(node):
        return ARGUMENT
    if node.op_type == "Constant" and any(a.name == "sparse_value" for a in node.attribute):
        return "its weight is not a dense tensor"
    if not _is_deterministic(node):
        return _computed(node)
    reasons = (_reason_of_name(index, site.scope, name) if name else "" for name in node.input)
    position, reason = next(((i, reason) for i, reason in enumerate(reasons) if reason), (0, ""))
    if not reason or node.op_type not in LINKS:
        return reason and _computed(node)
    if not position:
        return reason
    what = "shape" if node.op_type == "Reshape" else "axes"
    return f"its weight cannot be followed through {node.op_type}: its {what} is not constant"


def _is_deterministic(node: NodeProto) -> bool:
    """Whether it gives the same for the same, as far as can be known."""
    is_training = node.op_type == "Dropout" and bool("".join(node.input[2:]))
    is_known = node.domain in DEFAULT_DOMAINS and node.op_type not in _RANDOM
    return is_known and not is_training and not any(subgraphs(node))


def _computed(node: NodeProto) -> str:
    return f"its weight is computed at run time by {node.op_type}"


def _reason_of_name(index: ModelIndex, scope: int, name: str) -> str:
    definition = index.resolve(scope, name)
    if definition is None:
        return f"its weight '{name}' is not defined"
    return reason_variable(index, definition)


def closure(index: ModelIndex, definition: Definition) -> tuple[list[Site], list[Key]]:
    """The nodes that make a constant, in order, Constants among them; and its constants."""
    sites, constants = set[Site](), dict[Key, None]()
    queue, seen = [definition], {definition.key}
    while queue:
        current = queue.pop()
        if current.kind is not Kind.NODE:
            constants[current.key] = None
            continue
        site = Site(current.key.scope, current.node)
        sites.add(site)
        node = index.node(site)
        if node.op_type == "Constant":
            constants[current.key] = None
        if len(sites) > _MOST_NODES:
            raise NotComputedError("its weight comes through too many nodes")
        for name in node.input:
            upstream = index.resolve(site.scope, name) if name else None
            if upstream is not None and upstream.key not in seen:
                seen.add(upstream.key)
                queue.append(upstream)
    # A graph stands before those within it, which alone can read its tensors.
    return sorted(sites, key=lambda s: (s.scope, s.node)), list(constants)


def compute(index: ModelIndex, definition: Definition, folder: Path) -> Array:
    """Compute a tensor that depends on constants only.

    Raises
    ------
    NotComputedError
        If it takes too much memory or time, or if a node cannot be run.
    """
    sites, constants = closure(index, definition)
    values: dict[Key, Array] = {}
    for key in constants:
        found = index.resolve(key.scope, key.name)
        tensor = constant_of(index, found) if found else None
        if tensor is not None:
            values[key] = read_array(tensor, folder)
    left = _ALWAYS_ALLOWED + _GROWTH * sum(value.nbytes for value in values.values())
    for site in sites:
        node = index.node(site)
        if Key(site.scope, node.output[0]) in values:
            continue
        made = _run(index, site, values, left)
        left -= sum(array.nbytes for array in made)
        for name, array in zip(node.output, made, strict=False):
            values[Key(site.scope, name)] = array
    return values[definition.key]


def constant_of(index: ModelIndex, definition: Definition) -> TensorProto | None:
    """The tensor of an initializer or a Constant node; None for anything else."""
    if definition.kind is Kind.INITIALIZER:
        return definition.tensor
    if definition.kind is Kind.NODE:
        return constant_tensor(index.node(Site(definition.key.scope, definition.node)))
    return None


def _run(index: ModelIndex, site: Site, values: dict[Key, Array], left: int) -> list[Array]:
    """Run one node on values that are known, if what it makes takes at most `left` bytes."""
    node, arrays = index.node(site), list[Array | None]()
    for name in node.input:
        definition = index.resolve(site.scope, name) if name else None
        arrays.append(values[definition.key] if definition else None)
    model = _single_node(node, arrays, index.scopes[site.scope].opset)
    needed, entries = _needed(model)
    if needed is None:
        raise NotComputedError(
            f"its weight is computed by {node.op_type}, of a size that is not known"
        )
    if needed > left or (node.op_type in _SLOW and entries > _MOST_SLOW_ENTRIES):
        raise NotComputedError(f"its weight is computed by {node.op_type}, which takes too much")
    feeds = {f"i{i}": array for i, array in enumerate(arrays) if array is not None}
    try:
        with np.errstate(all="ignore"):
            return [np.asarray(a) for a in ReferenceEvaluator(model).run(None, feeds)]
    except Exception as e:
        raise NotComputedError(f"its weight cannot be computed by {node.op_type}: {e}") from e


def _single_node(node: NodeProto, arrays: Sequence[Array | None], opset: int) -> ModelProto:
    """Make a model of one node; what decides sizes is there as an initializer too."""
    copy = NodeProto()
    copy.CopyFrom(node)
    inputs, small = [], []
    for i, array in enumerate(arrays):
        if array is None:
            continue
        copy.input[i] = f"i{i}"
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        inputs.append(helper.make_tensor_value_info(f"i{i}", kind, array.shape))
        if array.dtype.kind in "iu" and array.size <= _MOST_SHAPE_ENTRIES:
            small.append(numpy_helper.from_array(np.asarray(array), f"i{i}"))
    copy.output[:] = [f"o{i}" for i in range(len(node.output))]
    outputs = [onnx.ValueInfoProto(name=name) for name in copy.output]
    graph = helper.make_graph([copy], "constant", inputs, outputs, small)
    opset = max(opset, _FIRST_OPSET.get(node.op_type, 0))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def _needed(model: ModelProto) -> tuple[int | None, int]:
    """Bytes and entries of the outputs of a model; None for bytes that are not known."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except Exception:  # noqa: BLE001 - inference is a help, and it raises all kinds of errors
        return None, 0
    needed = entries = 0
    for value in inferred.graph.output:
        kind = value.type.tensor_type
        dims = [d.dim_value for d in kind.shape.dim]
        is_known = kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim)
        if not is_known or not kind.elem_type:
            return None, 0
        needed += num_bytes(TensorProto(data_type=kind.elem_type, dims=dims))
        entries = max(entries, prod(dims))
    return needed, entries
