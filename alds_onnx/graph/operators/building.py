"""Building the chain of nodes that replaces a node.

The last node keeps the name, output and bias of the old one, so that what a runtime fuses with it
(activations, MatMul + Add, BatchNormalization) still fuses. One node of the chain, the carrier,
takes over the old node's attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from onnx import NodeProto

from alds_onnx.graph.layers import Layer
from alds_onnx.graph.scopes import DEFAULT_DOMAINS, first_output

_NO_ATTRIBUTES: Mapping[str, object] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Names for one replacement: of the weights, stage by stage, and what makes new ones."""

    weights: tuple[str, ...]
    fresh: Callable[[str], str]


class NodeChain:
    """Collects graphsurgeon nodes from the activation to the old node's output.

    `tensor` is what the nodes so far make, at first the activation. `weights` are those of the
    stages. `carrier` is the number of the node that takes over the old node's attributes, but for
    those called as in `final`, which the last node takes over; its own are in the old order then.
    """

    def __init__(self, layer: Layer, node: NodeProto, names: Names) -> None:
        self.layer, self.node = layer, node
        self.weights = [gs.Variable(name) for name in names.weights]
        self.tensor = gs.Variable(node.input[1 - layer.weight_input])
        self.carrier = -1
        self.final: Collection[str] = ()
        self._fresh = names.fresh
        self._nodes: list[gs.Node] = []

    def __len__(self) -> int:
        return len(self._nodes)

    def step(
        self, op: str, inputs: Sequence[gs.Variable], attrs: Mapping[str, object] = _NO_ATTRIBUTES
    ) -> None:
        """Add a node; its output becomes the current tensor."""
        self.tensor = gs.Variable(self._fresh(f"{self._stem()}/encoded"))
        name = self._fresh(f"{self._stem()}/encode")
        self._nodes.append(gs.Node(op, name, dict(attrs), list(inputs), [self.tensor]))

    def last(
        self, op: str, inputs: Sequence[gs.Variable], attrs: Mapping[str, object] = _NO_ATTRIBUTES
    ) -> None:
        """Add the node that makes the old node's outputs, with its bias and what else it reads."""
        others = [gs.Variable(name) for name in self.node.input[2:]]
        outputs = [gs.Variable(name) for name in self.node.output]
        self._nodes.append(gs.Node(op, self.node.name, dict(attrs), [*inputs, *others], outputs))

    def integers(self, values: list[int]) -> gs.Variable:
        """Add a constant, such as a shape."""
        name = self._fresh(f"{self._stem()}/shape")
        output = gs.Variable(name)
        value = gs.Constant(f"{name}/value", np.array(values, np.int64))
        self._nodes.append(gs.Node("Constant", attrs={"value": value}, outputs=[output]))
        return output

    def _stem(self) -> str:
        return self.node.name or first_output(self.node)

    def export(self) -> list[NodeProto]:
        """Export the chain; what graphsurgeon does not know of the old node is copied over."""
        graph = gs.Graph(nodes=self._nodes, inputs=[], outputs=[], opset=self.layer.opset)
        exported = gs.export_onnx(graph, do_type_check=False).graph.node
        return [self._inherit(i, new) for i, new in enumerate(exported)]

    def _inherit(self, position: int, new: NodeProto) -> NodeProto:
        """Take the old node with the new operator, name, inputs, outputs and attributes."""
        merged = NodeProto()
        merged.CopyFrom(self.node)
        merged.ClearField("input")
        merged.ClearField("output")
        merged.ClearField("attribute")
        own = {a.name: a for a in new.attribute}
        is_last = position == len(self) - 1
        for attribute in self.node.attribute:
            name, is_final = attribute.name, attribute.name in self.final
            is_taken = is_last if is_final else position == self.carrier
            if is_taken or (self.final and is_last and name in own):
                merged.attribute.append(own.pop(attribute.name, attribute))
        merged.attribute.extend(own.values())
        merged.op_type, merged.name = new.op_type, new.name
        if new.op_type != self.node.op_type and self.node.domain not in DEFAULT_DOMAINS:
            merged.ClearField("domain")
        merged.input.extend(new.input)
        merged.output.extend(new.output)
        return merged
