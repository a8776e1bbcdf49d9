"""What a rewrite may change in a model's protobuf, checked field by field.

Shares no code with the package and knows no field by heart but those of this list: it walks the
descriptors, so that a field which a later ONNX adds is compared too. Allowed are only

    1. a Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU, RNN, Gather or onnxruntime's fused form of
       one gives way to a run of nodes at its place; the last one is the old node with other inputs
       and attributes (of a ConvTranspose, it may be a Conv; of a Gather it is a MatMul), and just
       one of the old inputs, the weight, is no longer read;
    2. the weight goes: its initializer or Constant node and the nodes (Transpose ...) behind it,
       with what only these read, and what names them: graph inputs, value_info, quantization
       annotations;
    3. the factors come: initializers or Constant nodes with new names, which the new nodes read;
    4. external data lies elsewhere, with the same bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto

_DEFAULT_DOMAINS = ("", "ai.onnx")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
LAYERS = (*_CONVOLUTIONS, "Gemm", "MatMul", "LSTM", "GRU", "RNN")
_FUSED = ("FusedConv", "FusedGemm", "FusedMatMul")
_LINKS = ("Constant", "Identity", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
_LINKS += ("Cast", "DequantizeLinear")
_LOOKUP = "Gather"  # most of them have no row
_PATTERN = (*LAYERS, _LOOKUP, *_LINKS, "Shape", "Concat")

# Entries of external_data that say where the bytes lie.
_WHERE = ("location", "offset", "length", "checksum")

_Body: TypeAlias = "GraphProto | FunctionProto"


@dataclass(eq=False)
class _Place:
    """One graph or function, before and after, in the one around it."""

    path: str
    before: _Body
    after: _Body
    parent: _Place | None
    lost: list[tuple[str, str]] = field(default_factory=list)  # (field, name of the tensor)


@dataclass(frozen=True)
class Decomposed:
    """A node that gave way to others.

    Attributes
    ----------
    op, output
        Its operator and first output.
    weight
        What it called its weight.
    """

    op: str
    output: str
    weight: str
    place: _Place = field(repr=False)


@dataclass(frozen=True)
class Comparison:
    """What differs: `decomposed` is allowed, `problems` is not (one line each)."""

    decomposed: tuple[Decomposed, ...]
    problems: tuple[str, ...]


def compare(before: ModelProto, after: ModelProto, folder: Path, other: Path) -> Comparison:
    """Compare two models whose external data lies in `folder` and `other`."""
    walk = _Walk(before, folder, other)
    walk.message(before, after, "model", None)
    walk.finish()
    return Comparison(tuple(walk.decomposed), tuple(walk.problems))


class _Walk:
    """Goes through both models side by side."""

    def __init__(self, before: ModelProto, folder: Path, other: Path) -> None:
        self.folders = folder, other
        self.old_names = set(_names(before))
        self.problems: list[str] = []
        self.places: list[_Place] = []
        self.decomposed: list[Decomposed] = []
        self.added: dict[str, str] = {}  # new tensor -> where it is defined
        self.read: set[str] = set()  # what replacements read, and the old nodes did not

    def message(self, a: Message, b: Message, path: str, place: _Place | None) -> None:
        """Compare two messages of one type."""
        if _unknown(a) != _unknown(b):
            self.problems.append(f"{path}: unknown fields differ")
        if isinstance(a, (GraphProto, FunctionProto)):
            self._body(a, b, path, place)
        elif isinstance(a, TensorProto) and TensorProto.EXTERNAL in (
            a.data_location,
            b.data_location,
        ):
            self._external(a, b, path)
        else:
            self._fields(a, b, path, place, skipped=())

    def _fields(
        self, a: Message, b: Message, path: str, place: _Place | None, skipped: tuple[str, ...]
    ) -> None:
        for descriptor in a.DESCRIPTOR.fields:
            if descriptor.name not in skipped:
                self._field(descriptor, a, b, f"{path}.{descriptor.name}", place)

    def _field(
        self, descriptor: FieldDescriptor, a: Message, b: Message, path: str, place: _Place | None
    ) -> None:
        x, y = getattr(a, descriptor.name), getattr(b, descriptor.name)
        if _is_repeated(descriptor):
            if len(x) != len(y):
                self.problems.append(f"{path}: {len(x)} entries became {len(y)}")
            for i, (old, new) in enumerate(zip(x, y, strict=False)):
                self._value(old, new, f"{path}[{i}]", place)
            return
        present = [not descriptor.has_presence or m.HasField(descriptor.name) for m in (a, b)]
        if present[0] != present[1]:
            self.problems.append(f"{path}: presence differs")
        elif present[0]:
            self._value(x, y, path, place)

    def _value(self, x: Any, y: Any, path: str, place: _Place | None) -> None:
        if isinstance(x, Message):
            self.message(x, y, path, place)
        elif _bits(x) != _bits(y):
            self.problems.append(f"{path}: {_short(x)} became {_short(y)}")

    def _external(self, a: TensorProto, b: TensorProto, path: str) -> None:
        self._fields(a, b, path, None, skipped=("external_data",))
        kept = [[e for e in t.external_data if e.key not in _WHERE] for t in (a, b)]
        if [(e.key, e.value) for e in kept[0]] != [(e.key, e.value) for e in kept[1]]:
            self.problems.append(f"{path}.external_data: other entries differ")
        if _stored(a, self.folders[0]) != _stored(b, self.folders[1]):
            self.problems.append(f"{path}: the external data has other bytes")

    def _body(self, a: _Body, b: _Body, path: str, parent: _Place | None) -> None:
        place = _Place(path, a, b, parent)
        self.places.append(place)
        named: dict[str, Callable[[Any], str]] = {"value_info": lambda e: e.name}
        if isinstance(a, GraphProto):
            named |= {"initializer": lambda e: e.name, "input": lambda e: e.name}
            named |= {"quantization_annotation": lambda e: e.tensor_name}
        self._fields(a, b, path, place, skipped=("node", *named))
        for name, key in named.items():
            self._entries(place, name, key)
        self._nodes(place)

    def _entries(self, place: _Place, name: str, key: Callable[[Any], str]) -> None:
        """Entries keep their order; some may be lost, and initializers with new names come."""
        new, j = list(getattr(place.after, name)), 0
        for i, entry in enumerate(getattr(place.before, name)):
            j = self._skip_added(place, name, new, j, key)
            if j < len(new) and key(new[j]) == key(entry):
                self.message(entry, new[j], f"{place.path}.{name}[{i}] '{key(entry)}'", place)
                j += 1
            else:
                place.lost.append((name, key(entry)))
        j = self._skip_added(place, name, new, j, key)
        for entry in new[j:]:
            self.problems.append(f"{place.path}.{name}: '{key(entry)}' was added or moved")

    def _skip_added(
        self, place: _Place, name: str, new: list[Any], j: int, key: Callable[[Any], str]
    ) -> int:
        while name == "initializer" and j < len(new) and key(new[j]) not in self.old_names:
            self.added[key(new[j])] = place.path
            j += 1
        return j

    def _nodes(self, place: _Place) -> None:
        new, j = list(place.after.node), 0
        made = {name for node in new for name in node.output if name}
        for i, node in enumerate(place.before.node):
            path = f"{place.path}.node[{i}] '{node.name}'"
            j = self._skip_constants(place, new, j)
            end = next((e for e in range(j, len(new)) if new[e].output == node.output), None)
            if j < len(new) and _same_call(node, new[j]):
                self.message(node, new[j], path, place)
                j += 1
            elif (_is(node, (*LAYERS, _LOOKUP)) or _is_fused(node)) and end is not None:
                self._replacement(place, path, node, new[j : end + 1])
                j = end + 1
            elif _is(node, _LINKS) and not made.intersection(node.output):
                place.lost += [("node", name) for name in node.output]
            else:
                self.problems.append(f"{path}: {node.op_type} was lost, moved or changed")
                j += j < len(new) and new[j].output == node.output
        j = self._skip_constants(place, new, j)
        for extra in new[j:]:
            self.problems.append(f"{place.path}.node: {extra.op_type} was added or moved")

    def _skip_constants(self, place: _Place, new: list[NodeProto], j: int) -> int:
        while (
            j < len(new)
            and new[j].op_type == "Constant"
            and not self.old_names.intersection(new[j].output)
        ):
            self.added.update(dict.fromkeys(new[j].output, place.path))
            j += 1
        return j

    def _replacement(self, place: _Place, path: str, node: NodeProto, run: list[NodeProto]) -> None:
        made = [name for new in run[:-1] for name in new.output]
        read = {name for new in run for name in new.input if name}
        gone = [name for name in dict.fromkeys(node.input) if name and name not in read]
        if not all(
            _is(new, _PATTERN) or _is_fused(new) for new in run
        ) or self.old_names.intersection(made):
            self.problems.append(f"{path}: replaced by foreign nodes")
        if len(gone) != 1:
            self.problems.append(f"{path}: no longer reads {gone}, expected just its weight")
            return
        self.read |= read.difference(made, node.input)
        # Whether a node without a name says so by an empty one or by none is not told apart.
        skipped = ("input", "attribute", "name")
        if (node.op_type, run[-1].op_type) in (("ConvTranspose", "Conv"), (_LOOKUP, "MatMul")):
            skipped = (*skipped, "op_type")
        self._fields(node, run[-1], path, place, skipped=skipped)
        self._value(node.name, run[-1].name, f"{path}.name", place)
        self._attributes(path, node, run)
        self.decomposed.append(
            Decomposed(_row_name(node), next(filter(None, node.output)), gone[0], place)
        )

    def _attributes(self, path: str, node: NodeProto, run: list[NodeProto]) -> None:
        """A convolution's or Gather's attributes are on its first new node, others on the last."""
        if _is_fused(
            node
        ):  # the kernel's are on the plain node, those of the activation on the last
            found = [a for new in run for a in new.attribute]
            lost = [old.name for old in node.attribute if old not in found]
            self.problems += [f"{path}: attribute {name} was lost" for name in lost]
            return
        carriers = [new for new in run if new.op_type == node.op_type]
        carrier = carriers[0] if node.op_type in (*_CONVOLUTIONS, _LOOKUP) else run[-1]
        kept = {a.name: a for a in carrier.attribute}
        for old in node.attribute:
            if old.name == "group":
                continue
            if old.name not in kept:
                self.problems.append(f"{path}: attribute {old.name} was lost")
            else:
                self.message(old, kept[old.name], f"{path}.{old.name}", None)

    def finish(self) -> None:
        """Check that only weights of decomposed nodes went, and only factors came."""
        allowed = {key for layer in self.decomposed for key in self._weight(layer)}
        for place in self.places:
            for where, name in place.lost:
                if (place.path, name) not in allowed:
                    self.problems.append(f"{place.path}.{where}: '{name}' was lost")
        for name, where in self.added.items():
            if name not in self.read:
                self.problems.append(f"{where}: '{name}' was added and no new node reads it")
        for name in self.read - set(self.added):
            self.problems.append(f"a new node reads '{name}', which is not new")

    def _weight(self, layer: Decomposed) -> Iterator[tuple[str, str]]:
        """All tensors that lead to a decomposed node's weight, by place; the numbers must go."""
        yield from self._upstream(layer.place, layer.weight, must_go=True)

    def _upstream(
        self, start: _Place | None, name: str, *, must_go: bool
    ) -> Iterator[tuple[str, str]]:
        place = start
        while place is not None:
            maker = next((n for n in place.before.node if name in n.output), None)
            graph = place.before if isinstance(place.before, GraphProto) else None
            if maker is not None:
                yield from ((place.path, output) for output in maker.output)
                if must_go and ("node", name) not in place.lost:
                    self.problems.append(f"{place.path}: the maker of weight '{name}' stayed")
                for i, upstream in enumerate(maker.input):
                    yield from self._upstream(place, upstream, must_go=must_go and not i)
                return
            if graph is not None and name in [t.name for t in graph.initializer]:
                yield place.path, name
                if must_go and ("initializer", name) not in place.lost:
                    self.problems.append(f"{place.path}: the weight '{name}' stayed")
                return
            place = place.parent


def messages(model: ModelProto) -> Iterator[Message]:
    """All messages in a model, at any depth."""
    pending: list[Message] = [model]
    while pending:
        message = pending.pop()
        yield message
        for descriptor, value in message.ListFields():
            if descriptor.message_type is not None:
                pending.extend(value if _is_repeated(descriptor) else [value])


def layer_nodes(model: ModelProto) -> list[NodeProto]:
    """Every node of a model that may be decomposed, at any depth."""
    return [m for m in messages(model) if isinstance(m, NodeProto) and _is(m, LAYERS)]


def _names(model: ModelProto) -> Iterator[str]:
    """All names of tensors in a model, at any depth."""
    for message in messages(model):
        if isinstance(message, NodeProto):
            yield from message.input
            yield from message.output
        elif isinstance(message, GraphProto):
            for entries in (message.initializer, message.input, message.output):
                yield from (entry.name for entry in entries)


def _is_repeated(descriptor: FieldDescriptor) -> bool:
    modern = getattr(descriptor, "is_repeated", None)
    if modern is not None:  # protobuf 6; `label` warns there
        return bool(modern)
    return bool(descriptor.label == FieldDescriptor.LABEL_REPEATED)


def _unknown(message: Message) -> list[tuple[int, int, str]]:
    entries = UnknownFieldSet(message)
    return [(e.field_number, e.wire_type, repr(e.data)) for e in entries]


def _bits(value: Any) -> Any:
    """Make NaN equal to itself, and 0.0 differ from -0.0."""
    return struct.pack("d", value) if isinstance(value, float) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is(node: NodeProto, ops: tuple[str, ...]) -> bool:
    return node.op_type in ops and node.domain in _DEFAULT_DOMAINS


def _is_fused(node: NodeProto) -> bool:
    return node.domain == "com.microsoft" and node.op_type in _FUSED


def _row_name(node: NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if _is_fused(node) else node.op_type


def _same_call(a: NodeProto, b: NodeProto) -> bool:
    """Whether two nodes are one; what else they hold is then compared field by field."""
    same_operator = (a.op_type, a.domain) == (b.op_type, b.domain)
    return same_operator and a.input == b.input and a.output == b.output


def _stored(tensor: TensorProto, folder: Path) -> bytes:
    """The bytes of a tensor, wherever they lie."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return tensor.raw_data
    entries = {entry.key: entry.value for entry in tensor.external_data}
    start = int(entries.get("offset", 0))
    length = entries.get("length")
    data = (folder / entries["location"]).read_bytes()
    return data[start : start + int(length)] if length is not None else data[start:]
