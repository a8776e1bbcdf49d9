"""One layer as a model of its own, which is small enough to be timed.

The time of a layer depends on its sizes and attributes, not on the numbers in its weight, so the
weights are zeros. A convolution of images stands between two pooling nodes that keep onnxruntime's
blocked layout of channels, as its neighbours in a network do: a cut that leaves this layout also
pays for the conversions. An activation that runtimes fuse into the layer is part of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, NodeProto, TensorProto, helper

from alds_onnx.cuts import Cut, Factors
from alds_onnx.graph.find import find_layers
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.operators import OPERATORS
from alds_onnx.graph.rewrite import Replacement, rewrite, stored_factors
from alds_onnx.graph.scopes import DEFAULT_DOMAINS, Key, ModelIndex
from alds_onnx.graph.tensors import num_bytes

_FUSED = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid")
_IMAGE_AXES = 4
_IR_VERSION = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class IsolatedLayer:
    """A layer in isolation.

    Its `key` is a digest that is equal for all layers that take the same time, its `skeleton` a
    model of the dense layer whose weights have sizes but no numbers. All sizes in the `shape` of
    the model's input `x` are known.
    """

    key: str
    skeleton: ModelProto
    shape: tuple[int, ...]

    def dense(self) -> ModelProto:
        """Build the model of the dense layer, with zeros for weights."""
        model = ModelProto()
        model.CopyFrom(self.skeleton)
        for tensor in model.graph.initializer:
            tensor.raw_data = bytes(num_bytes(tensor))
        return model

    def decomposed(self, cuts: Sequence[Cut]) -> list[ModelProto]:
        """Build a model for each cut, by the same rewrite as that of a whole model."""
        dense = self.dense()
        ranks = {Key(0, name): len(self.shape) for name in ("x", "pooled")}
        (layer,) = find_layers(ModelIndex(dense), Path(), ranks)
        assert isinstance(layer, Layer)
        return [rewrite(dense, [zero_replacement((layer,), cut)]) for cut in cuts]


def zero_replacement(layers: tuple[Layer, ...], cut: Cut) -> Replacement:
    """Replace layers that share a weight by factors of zeros, for models that are only timed."""
    factors = stored_factors(layers[0], Factors.zeros(layers[0].shape, cut))
    return Replacement(layers=layers, factors=factors)


def isolate(index: ModelIndex, layer: Layer, activation: tuple[int, ...]) -> IsolatedLayer:
    """Take a layer out of its model; `activation` is the shape of its other operand in one run."""
    node, kind = index.node(layer.site), layer.source.tensor.data_type
    copy = NodeProto(op_type=node.op_type, name="layer", output=["result"])
    if node.domain not in DEFAULT_DOMAINS:
        copy.domain = node.domain
    copy.attribute.extend(sorted(node.attribute, key=lambda a: a.name))
    operator = OPERATORS[layer.op]
    is_blocked = operator.has_blocked_layout and kind == TensorProto.FLOAT
    is_pooled = is_blocked and len(activation) == _IMAGE_AXES
    operands = ["pooled" if is_pooled else "x", "weight"]
    copy.input.extend(operands if layer.weight_input else reversed(operands))
    weights = [TensorProto(name="weight", data_type=kind, dims=layer.source.shape)]
    for name, dims in operator.constants(layer, node).items():
        copy.input.append(name)
        weights.append(TensorProto(name=name, data_type=kind, dims=dims))
    nodes = [copy, *_activation(index, layer)]
    if is_pooled:
        first = helper.make_node("MaxPool", ["x"], ["pooled"], kernel_shape=[1, 1])
        last = helper.make_node("GlobalAveragePool", [nodes[-1].output[0]], ["mean"])
        nodes = [first, *nodes, last]
    opsets = {"": layer.opset} | ({copy.domain: 1} if copy.domain else {})
    skeleton = _model(nodes, weights, kind, activation, opsets)
    digest = hashlib.sha256(skeleton.SerializeToString(deterministic=True)).hexdigest()
    return IsolatedLayer(key=digest, skeleton=skeleton, shape=activation)


def _activation(index: ModelIndex, layer: Layer) -> list[NodeProto]:
    """Copy the activation downstream of a convolution, if nothing else reads its output."""
    key = Key(layer.site.scope, index.node(layer.site).output[0])
    readers = [use.site for use in index.uses.get(key, ())]
    fuses = OPERATORS[layer.op].has_blocked_layout
    if not fuses or len(readers) != 1 or readers[0] is None:
        return []
    node = index.node(readers[0])
    if node.op_type not in _FUSED:
        return []
    copy = NodeProto(op_type=node.op_type, name="activation", input=["result"], output=["active"])
    copy.attribute.extend(sorted(node.attribute, key=lambda a: a.name))
    return [copy]


def _model(
    nodes: Sequence[NodeProto],
    weights: Sequence[TensorProto],
    kind: int,
    activation: tuple[int, ...],
    versions: Mapping[str, int],
) -> ModelProto:
    x = helper.make_tensor_value_info("x", kind, activation)
    y = helper.make_tensor_value_info(nodes[-1].output[0], kind, None)
    graph = helper.make_graph(nodes, "layer in isolation", [x], [y], weights)
    opsets = [helper.make_opsetid(domain, version) for domain, version in versions.items()]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
