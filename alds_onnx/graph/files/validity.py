"""What onnx's checker lets pass although it can never run: models that contradict themselves.

    1. one domain imported in two versions: no reader can tell which of them holds;
    2. a function called with more inputs or outputs than it has, or that does not make its output;
    3. an initializer of another type or shape than the graph input of its name;
    4. a convolution or product whose operands do not fit each other, or a Reshape to another number
       of elements;
    5. all else that ONNX's own definitions of the operators find, by strict inference of types and
       shapes: inner sizes, broadcasts, axes, element types.

Whatever depends on something unknown passes: free sizes, what a custom operator makes,
operator sets newer than the installed onnx. So do wrong declared shapes of outputs and intermediate
tensors: runtimes warn, and go on with the right ones. A subgraph may never run, so the operands of
its nodes are held against constants only, not against what comes in.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import onnx
from onnx import (
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
)
from onnx.shape_inference import InferenceError, infer_shapes

from alds_onnx.graph.files.skeleton import default_domain_unnamed, label, skeleton
from alds_onnx.graph.operators import OPERATORS, operator_of
from alds_onnx.graph.operators.checks import (
    Dims,
    Places,
    Shapes,
    convolution_problem,
    fits,
    text,
)
from alds_onnx.graph.scopes import (
    DEFAULT_DOMAINS,
    constant_tensor,
    default_opset,
    has_arguments,
    subgraphs,
)
from alds_onnx.graph.shapes import declared_dims
from alds_onnx.graph.tensors import FLOATING, every, is_external, type_name

_log = logging.getLogger(__name__)

_Body: TypeAlias = GraphProto | FunctionProto

# Inference says one of these where it lacks a type or a number, which is no contradiction.
_IGNORANCE = ("null", "unknown", "Cannot parse", "not enabled", "out of bounds")
# It says these of element types alone, whatever the shapes are.
_OF_TYPES = ("typestr", "inconsistent type", "unsupported type", "elem type differs")
_AT_NODE = re.compile(r"\(op_type:([^,()]*), node name: (.*?)\):")
# All nodes of a skeleton have names: this one stands in ONNX's definition of an operator as other
# operators, and what is wrong there (attributes left out, in some versions) is not the model's.
_INSIDE_OPERATOR = re.compile(r"\(op_type:[^,()]*\):")
_KINDS = re.compile(r"\[\w+InferenceError\] |Inference error\(s\): ")

# Convolutions besides those of `graph.operators`: X (n, c, ..), W (f, c/g, kernel), and for
# QLinearConv scales and zero points between them.
_CONVOLUTIONS = {
    "ConvInteger": Places(bias=None),
    "QLinearConv": Places(w=3, bias=8),
}


@dataclass(frozen=True, slots=True)
class _Value:
    """What is known of a tensor; element type 0 if it is not known, or none."""

    element_type: int
    dims: Dims | None

    @property
    def is_sufficient(self) -> bool:
        """Whether inference needs no more of it: it reads integers and strings only."""
        if self.element_type == TensorProto.UNDEFINED or self.dims is None:
            return False
        return self.element_type in FLOATING or None not in self.dims


def contradiction(model: ModelProto) -> str:
    """Say how a model that passed onnx's checker contradicts itself; "" if it does not.

    Weights are not read, and external data is not opened.
    """
    small = skeleton(model)
    problem = _imports_problem(model) or _functions_problem(small) or _inputs_problem(model.graph)
    if problem:
        return problem
    values, constants = _infer(small), _constants(small.graph)
    known = {name: value.dims for name, value in values.items() if value.dims is not None}
    # First what names tensors and sizes: inference names the node only.
    problem = _operands_problem(small.graph, known, constants, default_opset(small.opset_import))
    return problem or (_strict_problem(small, values) if _can_be_strict(small) else "")


def _imports_problem(model: ModelProto) -> str:
    for part in (model, *model.functions):
        versions: dict[str, int] = {}
        for entry in part.opset_import:
            domain = entry.domain or "ai.onnx"
            first = versions.setdefault(domain, entry.version)
            if first != entry.version:
                return f"it imports domain '{domain}' in versions {first} and {entry.version}"
    return ""


def _functions_problem(model: ModelProto) -> str:
    functions = {(f.domain, f.name, f.overload): f for f in model.functions}
    for function in functions.values():
        made = {*function.input, *(name for node in function.node for name in node.output)}
        ghost = next((name for name in function.output if name not in made), None)
        if ghost is not None:
            return f"nothing makes output '{ghost}' of function '{function.name}'"
    for node in _nodes(model.graph, *model.functions) if functions else ():
        called = functions.get((node.domain, node.op_type, node.overload))
        if called is None:
            continue
        if len(node.input) > len(called.input) or len(node.output) > len(called.output):
            given = f"{len(node.input)} inputs and {len(node.output)} outputs"
            taken = f"{len(called.input)} and {len(called.output)}"
            return f"{_at(node)} has {given}, but the function of that name {taken}"
    return ""


def _nodes(*bodies: _Body) -> Iterator[NodeProto]:
    """All nodes of graphs and functions, those of subgraphs too."""
    for body in bodies:
        for node in body.node:
            yield node
            yield from _nodes(*(graph for _, graph in subgraphs(node)))


def _at(node: NodeProto) -> str:
    return f"node '{label(node)}' ({node.op_type})"


def _inputs_problem(graph: GraphProto) -> str:
    for value in (*graph.input, *graph.output):
        element_type = value.type.tensor_type.elem_type
        if element_type not in TensorProto.DataType.values():
            return f"'{value.name}' is of type {element_type}, which ONNX does not have"
    inputs = {value.name: value for value in graph.input}
    for tensor in graph.initializer:
        declared = inputs.get(tensor.name)
        if declared is None:
            continue
        what, other = f"initializer '{tensor.name}'", "the graph input of that name"
        element_type = declared.type.tensor_type.elem_type
        if element_type != tensor.data_type:
            types = type_name(tensor.data_type), type_name(element_type)
            return f"{what} is of type {types[0]}, {other} of type {types[1]}"
        dims, sizes = declared_dims(declared), tuple(tensor.dims)
        if dims is not None and not fits(sizes, dims):
            return f"{what} has shape {text(sizes)}, {other} {text(dims)}"
    return ""


def _operands_problem(graph: GraphProto, known: Shapes, constants: Shapes, opset: int) -> str:
    for node in graph.node:
        problem = _operand_problem(node, known, opset)
        if problem:
            return f"{_at(node)}: {problem}"
        for _, subgraph in subgraphs(node):
            inner = {**constants, **_constants(subgraph)}
            problem = _operands_problem(subgraph, inner, inner, opset)
            if problem:
                return problem
    return ""


def _operand_problem(node: NodeProto, shapes: Shapes, opset: int) -> str:
    """Say how the operands of a node contradict each other; "" if they do not."""
    operator = operator_of(node)
    if has_arguments(node):
        return ""
    if operator is not None:
        return operator.operand_problem(node, shapes, opset)
    if node.domain not in DEFAULT_DOMAINS:
        return ""
    if node.op_type in _CONVOLUTIONS:
        return convolution_problem(node, shapes, _CONVOLUTIONS[node.op_type])
    return _reshape_problem(node, shapes) if node.op_type == "Reshape" else ""


def _reshape_problem(node: NodeProto, shapes: Shapes) -> str:
    before, after = (_count(shapes.get(name)) for name in (node.input[0], node.output[0]))
    if before is None or after is None or before == after:
        return ""
    return f"it makes {after} elements of {before}"


def _count(dims: Dims | None) -> int | None:
    """Number of elements, if it is known."""
    sizes = [size for size in dims or (None,) if size is not None]
    return prod(sizes) if dims is not None and len(sizes) == len(dims) else None


def _constants(graph: GraphProto) -> dict[str, Dims]:
    """Shapes of the constants of a graph of a skeleton."""
    inputs = {value.name for value in graph.input}
    found = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in graph.value_info
        if value.type.tensor_type.HasField("shape")
    }
    found |= {t.name: tuple(t.dims) for t in graph.initializer if t.name not in inputs}
    for node in graph.node:
        tensor = constant_tensor(node)
        if tensor is not None:
            found |= {name: tuple(tensor.dims) for name in node.output}
    return found


def _infer(model: ModelProto) -> dict[str, _Value]:
    """What is known of the tensors of the main graph."""
    graph = model.graph
    try:
        graph = infer_shapes(model).graph
    except Exception as e:  # noqa: BLE001 - inference raises all kinds of errors
        _log.info("shape inference failed: %s", e)
    found = {t.name: _Value(t.data_type, tuple(t.dims)) for t in graph.initializer}
    for value in (*graph.value_info, *graph.output, *graph.input):
        found[value.name] = _Value(value.type.tensor_type.elem_type, declared_dims(value))
    return found


def _strict_problem(model: ModelProto, values: Mapping[str, _Value]) -> str:
    try:
        infer_shapes(model, check_type=True, strict_mode=True)
    except InferenceError as e:
        lines = str(e).splitlines()
        found = next((line for line in lines if _is_contradiction(line, model.graph, values)), "")
        return _AT_NODE.sub(r"node '\2' (\1):", _KINDS.sub("", found)).strip()
    except Exception as e:  # noqa: BLE001 - inference raises all kinds of errors
        _log.info("strict shape inference failed: %s", e)
    return ""


def _is_contradiction(line: str, graph: GraphProto, values: Mapping[str, _Value]) -> bool:
    """Whether inference says so of what is known: some sizes that are not, it takes for 0."""
    at = _AT_NODE.findall(line)
    if not at or _INSIDE_OPERATOR.search(line) or any(word in line for word in _IGNORANCE):
        return False
    if any(word in line for word in _OF_TYPES):
        return True
    if len(at) > 1:  # in a subgraph or function, of whose tensors nothing is known here
        return at[-1][0] in OPERATORS
    nodes = (node for node in graph.node if node.name == at[0][1])
    read = {name for node in nodes for name in node.input if name}
    return all(name in values and values[name].is_sufficient for name in read)


def _can_be_strict(model: ModelProto) -> bool:
    """Whether strict inference knows all that it needs.

    It makes light of an operator that it does not know, but only in the graph of that operator,
    not in a subgraph that reads what the operator makes. Of functions it reads the constants.
    """
    parts = ((model.opset_import, model.graph), *((f.opset_import, f) for f in model.functions))
    functions = {(f.domain, f.name, f.overload) for f in model.functions}
    is_flat = not functions and not any(True for n in model.graph.node for _ in subgraphs(n))
    for imports, body in parts:
        versions = {default_domain_unnamed(entry.domain): entry.version for entry in imports}
        if versions.get("", 0) > onnx.defs.onnx_opset_version():
            return False
        for node in () if is_flat else _nodes(body):
            if (node.domain, node.op_type, node.overload) in functions:
                continue
            domain = default_domain_unnamed(node.domain)
            if not onnx.defs.has(node.op_type, versions.get(domain, 0), domain):
                return False
    return not any(is_external(t) for f in model.functions for t in every(TensorProto, f))
