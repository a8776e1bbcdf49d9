"""Mutations: of bytes, of the fields of a protobuf message, of JSON values.

Every function draws from the `random.Random` that it is given, and from nothing else: the same seed
gives the same input.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from onnx import ModelProto, NodeProto, TensorProto

from tests.fuzz import bases

_INTEGERS = (0, 1, -1, 2, 3, 7, 16, 17, 255, 2**15, 2**31 - 1, -(2**31), 2**32, 2**40, 2**62,
             2**63 - 1, -(2**63))  # fmt: skip
_FLOATS = (0.0, -1.0, 0.5, 1e30, 1e-42, 3.4e38, float("inf"), float("nan"))
_STRINGS = ("", "x", "W", "y", "a", "ai.onnx", "com.microsoft", "../../etc/passwd", "/dev/zero",
            "C:\\x", bases.DATA, "\u00e9\u4e2d", "a\nb", "\x00", "0" * 30, "-1", "64", "MatMul",
            "Conv", "Gemm", "Constant", "If", "Reshape", "Identity", "value", "perm", "shape",
            "group", "body", "then_branch")  # fmt: skip
_OPERATORS = ("Conv", "Gemm", "MatMul", "Reshape", "Transpose", "Identity", "Flatten", "Squeeze",
              "Unsqueeze", "Constant", "If", "Loop", "twice", "Cast", "DequantizeLinear",
              "ConstantOfShape", "Expand", "Range", "Einsum")  # fmt: skip
_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def mutated_bytes(rng: Random, whole: bytes, other: bytes) -> bytes:
    """Flip, cut, splice, repeat, or tell lies about a length, one to four times."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if data:
            rng.choice(_BYTE_MUTATIONS)(rng, data, other)
    return bytes(data)


def _flip(rng: Random, data: bytearray, other: bytes) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _overwrite(rng: Random, data: bytearray, other: bytes) -> None:
    data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _cut(rng: Random, data: bytearray, other: bytes) -> None:
    del data[rng.randrange(len(data)) :]


def _remove(rng: Random, data: bytearray, other: bytes) -> None:
    start = rng.randrange(len(data))
    del data[start : start + rng.choice((1, 2, 8, 64))]


def _splice(rng: Random, data: bytearray, other: bytes) -> None:
    start, source = rng.randrange(len(data)), rng.randrange(len(other))
    data[start:start] = other[source : source + rng.choice((1, 8, 64, 512))]


def _lie(rng: Random, data: bytearray, other: bytes) -> None:
    """Put a varint that may be read as a length, a size or a tag."""
    start = rng.randrange(len(data))
    value = rng.choice(_INTEGERS) & (2**64 - 1)
    varint = bytearray()
    while value > 0x7F:
        varint.append(value & 0x7F | 0x80)
        value >>= 7
    data[start : start + rng.randrange(3)] = bytes([*varint, value])


_BYTE_MUTATIONS = (_flip, _flip, _overwrite, _overwrite, _cut, _remove, _splice, _lie, _lie)


def mutated_model(rng: Random, model: ModelProto) -> ModelProto:
    """Change one to three fields of a copy: any field of any message, or one that matters."""
    result = ModelProto()
    result.CopyFrom(model)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(_FIELD_MUTATIONS)(rng, result)
    return result


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for _, value in message.ListFields():
        entries = [value] if isinstance(value, Message) else value
        if not isinstance(entries, (str, bytes, int, float)):
            for entry in entries:
                if isinstance(entry, Message):
                    yield from _messages(entry)


def _any_field(rng: Random, model: ModelProto) -> None:
    found = list(_messages(model))
    message = rng.choice(found)
    fields = [field for field, _ in message.ListFields()] or list(message.DESCRIPTOR.fields)
    field = rng.choice(fields if rng.random() < 0.8 else list(message.DESCRIPTOR.fields))
    alike = [m for m in found if m.DESCRIPTOR is field.message_type]
    if _is_repeated(field):
        _change_list(rng, getattr(message, field.name), field, alike)
    elif field.message_type is not None:
        _change_message(rng, message, field, alike)
    else:
        setattr(message, field.name, _scalar(rng, field, getattr(message, field.name)))


def _is_repeated(field: FieldDescriptor) -> bool:
    # `label` is deprecated in new versions of protobuf, `is_repeated` is missing in old ones.
    known = getattr(field, "is_repeated", None)
    return field.label == FieldDescriptor.LABEL_REPEATED if known is None else bool(known)


def _change_list(rng: Random, entries: Any, field: FieldDescriptor, alike: list[Message]) -> None:
    action = rng.choice(("delete", "double", "clear", "swap", "add", "change"))
    is_message = field.message_type is not None
    if action == "clear":
        del entries[:]
    elif entries and action == "delete":
        del entries[rng.randrange(len(entries))]
    elif entries and action == "swap":
        order = list(range(len(entries)))
        rng.shuffle(order)
        kept = [copy.deepcopy(entries[i]) for i in order]
        del entries[:]
        entries.extend(kept)
    elif is_message:
        pool = list(entries) if action == "double" and entries else alike
        entries.extend([copy.deepcopy(rng.choice(pool))] if pool else [])
    elif entries and action == "change":
        i = rng.randrange(len(entries))
        entries[i] = _scalar(rng, field, entries[i])
    else:
        entries.append(rng.choice(entries) if entries else _scalar(rng, field, None))


def _change_message(
    rng: Random, message: Message, field: FieldDescriptor, alike: list[Message]
) -> None:
    """Remove it, empty it, or put in its place one of the same kind from elsewhere."""
    action = rng.choice(("remove", "empty", "other", "other"))
    message.ClearField(field.name)
    if action == "empty":
        getattr(message, field.name).SetInParent()
    elif action == "other" and alike:
        getattr(message, field.name).CopyFrom(copy.deepcopy(rng.choice(alike)))


def _scalar(rng: Random, field: FieldDescriptor, old: Any) -> Any:
    kind = field.cpp_type
    if kind in _RANGES:
        low, high = _RANGES[kind]
        near = [old + 1, old - 1, old * 2, -old] if isinstance(old, int) else []
        return rng.choice([v for v in (*_INTEGERS, *near) if low <= v <= high])
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return rng.choice(_FLOATS)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return rng.choice(field.enum_type.values).number
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return not old
    if field.type == FieldDescriptor.TYPE_BYTES:
        return mutated_bytes(rng, old or b"abc", b"\xff" * 9)
    return rng.choice((*_STRINGS, f"{old}_", old or "", "n" * 5000))


def _all(model: ModelProto, kind: type[Message]) -> list[Any]:
    return [m for m in _messages(model) if m.DESCRIPTOR is kind.DESCRIPTOR]


def _sizes(rng: Random, model: ModelProto) -> None:
    """Lie about a tensor's dimensions or type."""
    tensors = _all(model, TensorProto)
    if not tensors:
        return
    tensor = rng.choice(tensors)
    if rng.random() < 0.4:
        tensor.data_type = rng.choice((*TensorProto.DataType.values(), 99, -1))
    elif tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(_INTEGERS)
    if rng.random() < 0.2:
        tensor.dims.append(rng.choice((0, 1, 2, 2**40)))
    if rng.random() < 0.2:
        tensor.ClearField("raw_data")


def _operator(rng: Random, model: ModelProto) -> None:
    nodes = _all(model, NodeProto)
    if nodes:
        node = rng.choice(nodes)
        node.op_type = rng.choice(_OPERATORS)
        node.domain = rng.choice(("", "", "", "ai.onnx", "own", "com.microsoft"))


def _wire(rng: Random, model: ModelProto) -> None:
    """Give an input or an output of a node another name of the model, or none."""
    nodes = _all(model, NodeProto)
    if not nodes:
        return
    names = ["", *(name for node in nodes for name in (*node.input, *node.output))]
    node = rng.choice(nodes)
    ends = node.input if node.input and rng.random() < 0.7 else node.output
    if ends:
        ends[rng.randrange(len(ends))] = rng.choice(names)


def _location(rng: Random, model: ModelProto) -> None:
    """Let a tensor lie in a file, with odd entries."""
    tensors = _all(model, TensorProto)
    if not tensors:
        return
    tensor = rng.choice(tensors)
    tensor.data_location = TensorProto.EXTERNAL
    if rng.random() < 0.5:
        tensor.ClearField("raw_data")
    for key in rng.sample(("location", "offset", "length", "checksum"), rng.randint(0, 3)):
        value = rng.choice((*_STRINGS, *(str(i) for i in _INTEGERS)))
        tensor.external_data.add(key=key, value=value)


def _nest(rng: Random, model: ModelProto) -> None:
    """Put the graph into an If inside itself, a few levels deep."""
    depth = rng.choice((1, 2, 8))
    for _ in range(depth):
        inner = copy.deepcopy(model.graph)
        if rng.random() < 0.5:
            del inner.input[:]
        node = NodeProto(op_type="If", input=["p"], output=[f"n{rng.randrange(9)}"])
        node.attribute.add(name="then_branch", type="GRAPH").g.CopyFrom(inner)
        node.attribute.add(name="else_branch", type="GRAPH").g.CopyFrom(inner)
        model.graph.node.append(node)
        if len(model.graph.node) > 40 or model.ByteSize() > 100_000:
            return


_FIELD_MUTATIONS = (*[_any_field] * 6, *[_operator, _wire, _nest] * 2, _sizes, _location)


def mutated_json(rng: Random, data: Any) -> bytes:
    """Change values of a JSON document, or the bytes of its text."""
    if rng.random() < 0.3:
        text = json.dumps(data).encode()
        return mutated_bytes(rng, text, text)
    result = copy.deepcopy(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        _change_json(rng, result)
    return json.dumps(result).encode()


def _change_json(rng: Random, data: Any) -> None:
    holders = list(_holders(data))
    holder = rng.choice(holders)
    keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
    if not keys:
        return
    key = rng.choice(keys)
    action = rng.random()
    if action < 0.2:
        del holder[key]
    elif action < 0.35:
        holder[key] = copy.deepcopy(rng.choice(holders))
    elif action < 0.45 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    else:
        holder[key] = rng.choice((*_INTEGERS, *_FLOATS, *_STRINGS, None, True, [], {}, 10**400,
                                  "\ud800", [[]], "decompose", "skip", "keep"))  # fmt: skip


def _holders(data: Any) -> Iterator[Any]:
    if isinstance(data, (dict, list)):
        yield data
        for value in data.values() if isinstance(data, dict) else data:
            yield from _holders(value)


_DESCRIPTORS = ("'<f4'", "'<f8'", "'|O'", "'<U1000000000'", "'|V2000000000'", "'|S0'", "'<i8'",
                "'|b1'", "[('a', '<f4')]", "'<f4', (99999, 99999)", "'zz'", "None", "'<M8[s]'",
                "('<f4', (100000, 100000))")  # fmt: skip
_SHAPES = ("(40, 16)", "(1000000000000,)", "(1000000, 16)", "(4000000000, 0)", "(-1, 16)", "()",
           "(9223372036854775807, 9223372036854775807)", "(2, 4611686018427387904, 16)",
           "(1,) * 3", "(True, 16)", "(300000000, 16)", "[40, 16]", "(1e3, 16)", "40")  # fmt: skip


def mutated_arrays(rng: Random, files: list[bytes]) -> bytes:
    """Damage a file, or write one whose headers lie."""
    kind = rng.random()
    if kind < 0.5:
        return mutated_bytes(rng, rng.choice(files), rng.choice(files))
    payload = rng.randbytes(rng.choice((0, 7, 40 * 16 * 4)))
    claim = bases.npy_claim(
        rng.choice(_DESCRIPTORS), rng.choice(_SHAPES), payload, fortran=rng.random() < 0.3
    )
    if kind < 0.7:
        return claim
    archive = bytearray(
        bases.npz({"x.npy": claim, "x": b"plain"} if kind < 0.8 else {"x.npy": claim})
    )
    if rng.random() < 0.5:  # the sizes in the archive's own directory lie too
        where = archive.find(b"PK\x01\x02") + rng.choice((20, 24))
        archive[where : where + 4] = rng.choice((b"\xff\xff\xff\x7f", b"\x00\x00\x00\x00"))
    return bytes(archive)
