"""What an operator with a weight has to say, so that its nodes can be decomposed and merged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import ClassVar

from onnx import NodeProto

from alds_onnx.cuts import Cut, Work
from alds_onnx.decompose.stages import Array, Dims
from alds_onnx.graph.layers import Layer, WeightLayout
from alds_onnx.graph.operators.building import Names
from alds_onnx.graph.operators.checks import Shapes
from alds_onnx.graph.operators.reading import Candidate, Form, Whole
from alds_onnx.graph.weights import WeightSource


class Operator(ABC):
    """An ONNX operator that multiplies its input by a weight, and may do more with the product.

    It is replaced by one node for each stage of a cut, perhaps with nodes between that only move
    entries. A class holds no state: everything follows from the node and its shapes.

    Attributes
    ----------
    op_type, domain
        ONNX's name, and the domain that it is from; "" is the default one.
    last_ops
        The operators that the last of the new nodes may have, all of the same domain.
    has_blocked_layout
        Whether onnxruntime runs it in its blocked layout of channels, and fuses an activation.
    is_lookup
        Whether its rows x are one-hot, and given as ids.
    """

    op_type: ClassVar[str]
    domain: ClassVar[str] = ""
    last_ops: ClassVar[frozenset[str]]
    has_blocked_layout: ClassVar[bool] = False
    is_lookup: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """What rows call it."""
        return f"{self.domain}.{self.op_type}" if self.domain else self.op_type

    # The node and its weight

    def has_row(self, source: Callable[[int], WeightSource | str]) -> bool:
        """Whether such a node has a weight at all; `source` gives the constants of an input."""
        return True

    def takes(self, node: NodeProto) -> bool:
        """Whether a node of this type has operands that may be a weight and an activation."""
        return len(node.input) > 1

    def plain(self, node: NodeProto) -> NodeProto | None:
        """A node that ONNX knows, with outputs of the same shape, in place of one that it does not.

        None if the node itself is known, or if there is no such node.
        """
        return None

    def weight_input(self, is_constant: Callable[[int], bool]) -> int:
        """Which input is the weight, 0 or 1; the other one is the activation."""
        return 1

    @abstractmethod
    def refusal(self, node: NodeProto, dims: Dims, is_constant: Callable[[int], bool]) -> str:
        """Why a node with a weight of shape `dims` cannot be decomposed; "" if it can."""

    @abstractmethod
    def layout(self, node: NodeProto, position: int, dims: Dims) -> WeightLayout:
        """How a weight of shape `dims` at input `position` is folded to (f, c·kh·kw)."""

    def activation_rank(self, known: int | None) -> int | None:
        """The number of axes of the activation, from what shape inference knows of it."""
        return known

    @abstractmethod
    def is_sliceable(self, opset: int, activation_rank: int | None) -> bool:
        """Whether the nodes for more than one slice can be written."""

    @abstractmethod
    def bias_input(self, node: NodeProto, position: int) -> int | None:
        """The input of shape (f,) or (1, f) that is added to the output as it is, or None.

        `position` is that of the weight.
        """

    def bias_shape(self, layer: Layer) -> Dims:
        """The shape of a bias with one number for each output feature."""
        return (layer.shape.out_features,)

    def constants(self, layer: Layer, node: NodeProto) -> Mapping[str, Dims]:
        """Names and shapes of what the node reads after its weight when it stands alone."""
        return {"bias": self.bias_shape(layer)} if any(node.input[2:3]) else {}

    # What it computes

    @abstractmethod
    def work(
        self, node: NodeProto, inputs: Sequence[Dims | None], output: Dims | None
    ) -> Work | None:
        """What a node computes in one run, from the shapes of its first two inputs and its output.

        None where a shape that it takes is not known. Multiply-accumulates are output entries times
        the length of the sum that makes each (CR-F of the paper counts the same).
        """

    @abstractmethod
    def windows(self, layer: Layer, node: NodeProto, activation: Array) -> Array:
        """The rows x that the folded weight multiplies, as a view of shape (.., c, kh, kw).

        Everything before c counts the rows.
        """

    @abstractmethod
    def input_sizes(self, node: NodeProto, dims: Dims, rank: int) -> Mapping[int, int]:
        """Sizes of axes of input 0, of `rank` axes, that follow from input 1, of shape `dims`."""

    @abstractmethod
    def operand_problem(self, node: NodeProto, shapes: Shapes, opset: int) -> str:
        """How the shapes of the operands of any such node contradict each other; "" if not."""

    # The nodes that replace it

    @abstractmethod
    def node_weights(self, layer: Layer, cut: Cut, weights: Sequence[Array]) -> tuple[Array, ...]:
        """The weights (out, in / groups, kernel) of all stages, as the new nodes read them."""

    @abstractmethod
    def build(self, layer: Layer, node: NodeProto, cut: Cut, names: Names) -> list[NodeProto]:
        """The nodes that replace a node; the last one makes its output."""

    # The way back

    @abstractmethod
    def read(self, candidate: Candidate) -> Form | None:
        """The structure of nodes that `build` could have made; None if they are no such nodes."""

    @abstractmethod
    def whole(self, form: Form, nodes: Sequence[NodeProto], dims: Sequence[Dims]) -> Whole | str:
        """The dense node, or why there is none.

        `nodes` read the weights of the stages, of shapes `dims`, in the order of the stages.
        """

    @abstractmethod
    def stage_weights(
        self, layout: WeightLayout, nodes: Sequence[NodeProto], weights: Sequence[Array]
    ) -> tuple[Array, ...]:
        """Undo `node_weights`; `layout` is that of the dense weight."""


def plain_node(node: NodeProto, op: str, dropped: Collection[str]) -> NodeProto:
    """A node of another operator of the default domain, without some attributes.

    It has at most three inputs: what a fused operator takes after the bias it only adds.
    """
    attributes = [a for a in node.attribute if a.name not in dropped]
    return NodeProto(
        op_type=op, name=node.name, input=node.input[:3], output=node.output, attribute=attributes
    )
