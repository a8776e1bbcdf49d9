"""What onnx's checker lets pass although it can never run: models that contradict themselves.

    1. one domain imported in two versions: no reader can tell which of them holds;
    2. a call of a function with more arguments than it takes, a function that does not make what
       it gives back;
    3. an initializer of another type or shape than the graph input of its name;
    4. Conv, ConvTranspose, ConvInteger, QLinearConv and Gemm: a kernel, a group, a bias that does
       not fit the weight, or a weight that does not fit the input. ONNX's inference takes the
       word of some attributes;
    5. all else that ONNX's own definitions of the operators find (strict inference of types and
       shapes): inner sizes, broadcasts, axes, types.

Whatever depends on what is not known here passes: sizes that are free, what stands behind a custom
operator, operator sets newer than the installed onnx. So do declared shapes of outputs and
intermediate tensors that are wrong: runtimes warn, and go on with the right ones. A subgraph may
never run, so its layers are held against its constants only.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto

from alds_onnx.graph.operands import Dims, operand_problem
from alds_onnx.graph.scopes import subgraphs
from alds_onnx.graph.skeleton import label, skeleton
from alds_onnx.graph.tensors import type_name

_log = logging.getLogger(__name__)

_Body: TypeAlias = GraphProto | FunctionProto
_Id: TypeAlias = tuple[str, str, str]

# Inference says one of these where it lacks a type or a number, which is no contradiction.
_IGNORANCE = ("null", "unknown", "Cannot parse", "unsupported. existing", "not enabled")
_AT_NODE = re.compile(r"\(op_type:([^,()]*)(?:, node name: (.*?))?\):")
_KINDS = re.compile(r"\[\w+InferenceError\] |Inference error\(s\): ")


def contradiction(model: ModelProto) -> str:
    """Say where a model that passed onnx's checker contradicts itself; "" if it does not.

    Weights are not read, and external data is not opened.
    """
    small = skeleton(model)
    problems = (
        *(_imports_problem(part.opset_import) for part in (model, *model.functions)),
        _function_problem(small),
        _override_problem(model.graph),
    )
    found = next(filter(None, problems), "")
    return found or _operator_problem(small)


def _imports_problem(imports: Iterable[OperatorSetIdProto]) -> str:
    versions: dict[str, int] = {}
    for entry in imports:
        domain = entry.domain or "ai.onnx"
        first = versions.setdefault(domain, entry.version)
        if first != entry.version:
            return f"it imports domain '{domain}' in versions {first} and {entry.version}"
    return ""


def _function_problem(model: ModelProto) -> str:
    functions = {_identity(f.domain, f.name, f.overload): f for f in model.functions}
    for function in model.functions:
        made = {*function.input, *(name for node in function.node for name in node.output)}
        for name in function.output:
            if name not in made:
                return f"nothing makes output '{name}' of function '{function.name}'"
    bodies: tuple[_Body, ...] = (model.graph, *model.functions)
    for node in (node for body in bodies for node in _nodes(body)) if functions else ():
        called = functions.get(_identity(node.domain, node.op_type, node.overload))
        if called is None:
            continue
        for kind, given, taken in (
            ("inputs", len(node.input), len(called.input)),
            ("outputs", len(node.output), len(called.output)),
        ):
            if given > taken:
                return f"{_at(node)}: it has {given} {kind}, but function '{called.name}' {taken}"
    return ""


def _identity(domain: str, name: str, overload: str) -> _Id:
    return domain, name, overload


def _nodes(body: _Body) -> Iterator[NodeProto]:
    """All nodes of a body, those of subgraphs too."""
    for node in body.node:
        yield node
        for _, graph in subgraphs(node):
            yield from _nodes(graph)


def _override_problem(graph: GraphProto) -> str:
    inputs = {value.name: value.type.tensor_type for value in graph.input}
    for tensor in graph.initializer:
        declared = inputs.get(tensor.name)
        if declared is None:
            continue
        what = f"initializer '{tensor.name}'"
        if declared.elem_type != tensor.data_type:
            there, here = type_name(declared.elem_type), type_name(tensor.data_type)
            return f"{what} is of type {here}, the graph input of that name of type {there}"
        dims = _dims(declared)
        if dims is not None and not _fits(tensor.dims, dims):
            sizes = [size if size is not None else "?" for size in dims]
            return f"{what} has shape {list(tensor.dims)}, the graph input of that name {sizes}"
    return ""


def _fits(sizes: Iterable[int], declared: Dims) -> bool:
    sizes = tuple(sizes)
    return len(sizes) == len(declared) and all(
        d is None or d == size for size, d in zip(sizes, declared, strict=True)
    )


def _dims(tensor_type: onnx.TypeProto.Tensor) -> Dims | None:
    """Sizes of a declared or inferred shape; one that is not positive is taken for unknown."""
    if not tensor_type.HasField("shape"):
        return None
    return tuple(d.dim_value if d.dim_value > 0 else None for d in tensor_type.shape.dim)


def _operator_problem(model: ModelProto) -> str:
    """Look for operators that do not fit what they read; `model` is a skeleton."""
    inferred, problem = _infer(model)
    declared = (*inferred.graph.value_info, *inferred.graph.input)
    shapes = {v.name: _dims(v.type.tensor_type) for v in declared}
    shapes |= _constants(model.graph)
    known = {name: dims for name, dims in shapes.items() if dims is not None}
    # Before what inference says: these name the tensors and sizes.
    return _layers_problem(model.graph, known, default_version(model)) or problem
