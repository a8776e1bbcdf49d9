"""One layer as a model of its own, small enough to be timed, and true to its place.

Time depends on sizes and attributes, not on numbers: the weights are zeros. A convolution of images
stands between two poolings that keep onnxruntime's blocked layout of channels, as its neighbours in
a network do: a cut that leaves this layout pays for the way out and back. An activation that
runtimes fuse into the layer comes with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, NodeProto, TensorProto, helper

from alds_onnx.cuts import Cut, Factors
from alds_onnx.graph.find import find_layers
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.operators import OPERATORS
from alds_onnx.graph.rewrite import Replacement, rewrite, stored_factors
from alds_onnx.graph.scopes import Key, ModelIndex
from alds_onnx.graph.tensors import num_bytes

_FUSED = ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid")
_IMAGE_AXES = 4
_IR_VERSION = 8


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alone:
    """A layer on its own.

    Attributes
    ----------
    key
        The same for all layers that take the same time.
    skeleton
        The dense layer, its weights without numbers.
    shape
        Of the input `x`, all sizes known.
    """

    key: str
    skeleton: ModelProto
    shape: tuple[int, ...]

    def dense(self) -> ModelProto:
        """The layer as it is, with zeros for weights."""
        model = ModelProto()
        model.CopyFrom(self.skeleton)
        for tensor in model.graph.initializer:
            tensor.raw_data = bytes(num_bytes(tensor))
        return model

    def decomposed(self, cuts: Sequence[Cut]) -> list[ModelProto]:
        """The layer cut in each of these ways, as a rewrite of the whole model would do it."""
        dense = self.dense()
        ranks = {Key(0, "x"): len(self.shape), Key(0, "before"): len(self.shape)}
        (layer,) = find_layers(ModelIndex(dense), Path(), ranks)
        assert isinstance(layer, Layer)
        models = []
        for cut in cuts:
            replacement = Replacement(layers=(layer,), factors=zero_factors(layer, cut))
            models.append(rewrite(dense, [replacement]))
        return models


def zero_factors(layer: Layer, cut: Cut) -> Factors:
    """Factors as the model would hold them, for models that are only timed."""
    return stored_factors(layer, Factors.zeros(layer.shape, cut))


def alone(index: ModelIndex, layer: Layer, activation: tuple[int, ...]) -> Alone:
    """Take a layer out of its model.

    Parameters
    ----------
    index
        The model.
    layer
        One of its layers.
    activation
        Shape of the layer's other operand in one run.
    """
    node, kind = index.node(layer.site), layer.source.tensor.data_type
    copy = NodeProto(op_type=node.op_type, name="layer", output=["made"])
    copy.attribute.extend(sorted(node.attribute, key=lambda a: a.name))
    operator = OPERATORS[layer.op]
    is_blocked = operator.has_blocked_layout and kind == TensorProto.FLOAT
    pooled = is_blocked and len(activation) == _IMAGE_AXES
    operands = ["before" if pooled else "x", "weight"]
    copy.input.extend(operands if layer.weight_input else reversed(operands))
    weights = [TensorProto(name="weight", data_type=kind, dims=layer.source.shape)]
    if len(node.input) > 2 and node.input[2]:
        copy.input.append("bias")
        dims = operator.bias_shape(layer)
        weights.append(TensorProto(name="bias", data_type=kind, dims=dims))
    nodes = [copy, *_activation(index, layer)]
    if pooled:
        first = helper.make_node("MaxPool", ["x"], ["before"], kernel_shape=[1, 1])
        last = helper.make_node("GlobalAveragePool", [nodes[-1].output[0]], ["behind"])
        nodes = [first, *nodes, last]
    skeleton = _model(nodes, weights, kind, activation, layer.opset)
    digest = hashlib.sha256(skeleton.SerializeToString(deterministic=True)).hexdigest()
    return Alone(key=digest, skeleton=skeleton, shape=activation)


def _activation(index: ModelIndex, layer: Layer) -> list[NodeProto]:
    """The activation behind a convolution, if nothing else reads its output."""
    key = Key(layer.site.scope, index.node(layer.site).output[0])
    readers = [use.site for use in index.uses.get(key, ())]
    fuses = OPERATORS[layer.op].has_blocked_layout
    if not fuses or len(readers) != 1 or readers[0] is None:
        return []
    node = index.node(readers[0])
    if node.op_type not in _FUSED:
        return []
    copy = NodeProto(op_type=node.op_type, name="activation", input=["made"], output=["active"])
    copy.attribute.extend(sorted(node.attribute, key=lambda a: a.name))
    return [copy]


def _model(
    nodes: Sequence[NodeProto],
    weights: Sequence[TensorProto],
    kind: int,
    activation: tuple[int, ...],
    opset: int,
) -> ModelProto:
    x = helper.make_tensor_value_info("x", kind, activation)
    y = helper.make_tensor_value_info(nodes[-1].output[0], kind, None)
    graph = helper.make_graph(nodes, "alone", [x], [y], weights)
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
