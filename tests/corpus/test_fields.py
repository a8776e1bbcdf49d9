"""The checkers of the corpus: what they let pass, and what they must catch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from tests.corpus.computed import distances, relative_distance, same_bits, unpacked
from tests.corpus.driver import ran
from tests.corpus.fields import Comparison, compare

_HERE = Path(__file__).parent

_BEFORE = """
<ir_version: 10, opset_import: ["" : 20, "local" : 1], doc_string: "about",
 metadata_props: ["a" : "b"]>
main (float[N, 6] x, bool cond, float[8] s, float[6, 8] w) => (float[N, 8] y)
{
  m = MatMul(x, w)
  v = Transpose<perm = [1, 0]>(W0)
  g = Gemm<alpha = 0.5, transB = 1>(x, v, s)
  i = If (cond) <
    then_branch = yes () => (float[N, 8] o) { o = MatMul(x, w) },
    else_branch = no () => (float[N, 8] p) { p = Add(m, t) }
  >
  j = local.Twice(i)
  k = Sum(g, h, j)
  y = Custom<a = [1.0, 2.0], b = 3.0>(k)
}
<domain: "local", opset_import: ["" : 20]>
Twice (a) => (b) { b = Add(a, a) }
"""


def _tensor(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def _before() -> ModelProto:
    """A model with something in many fields."""
    model = onnx.parser.parse_model(_BEFORE)
    graph = model.graph
    graph.initializer.extend(_tensor(name, 8) for name in "sth")
    graph.initializer.extend(_tensor(name, 6, 8) for name in ("w", "spare"))
    graph.initializer.append(_tensor("W0", 8, 6))
    for number, node in enumerate(graph.node):
        node.name, node.doc_string = f"n{number}", f"line {number}"
        node.metadata_props.add(key="scope", value="fc")
    for name in ("m", "w", "y"):
        graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    for name in ("w", "m"):
        graph.quantization_annotation.add(tensor_name=name)
    return model


def _pair(node: NodeProto, activation: str, weight: str) -> tuple[NodeProto, NodeProto]:
    """Hand-made encoder and decoder of a product whose weight stands on the right."""
    encoder = helper.make_node("MatMul", [activation, "E"], [f"{node.output[0]}/code"])
    decoder = NodeProto()
    decoder.CopyFrom(node)
    inputs = {activation: encoder.output[0], weight: "D"}
    for i, name in enumerate(node.input):
        decoder.input[i] = inputs.get(name, name)
    return encoder, decoder


def _replace(nodes: Any, position: int, weight: str) -> None:
    pair = _pair(nodes[position], "x", weight)
    del nodes[position]
    for new in reversed(pair):
        nodes.insert(position, new)


def _after() -> ModelProto:
    """The same with both readers of w, and the Gemm, decomposed as the package may do it."""
    model = _before()
    graph = model.graph
    _replace(graph.node[3].attribute[0].g.node, 0, "w")
    _replace(graph.node, 2, "v")
    del graph.node[1]  # the Transpose
    _replace(graph.node, 0, "w")
    for entries in (graph.initializer, graph.input, graph.value_info):
        for i in reversed(range(len(entries))):
            if entries[i].name in ("w", "W0"):
                del entries[i]
    del graph.quantization_annotation[0]
    graph.initializer.extend([_tensor("E", 6, 2), _tensor("D", 2, 8)])
    return model


def _compared(after: ModelProto) -> Comparison:
    return compare(_before(), after, _HERE, _HERE)


def test_a_proper_rewrite_passes() -> None:
    found = _compared(_after())
    assert found.problems == ()
    assert sorted(layer.weight for layer in found.decomposed) == ["v", "w", "w"]


def test_equal_models_pass() -> None:
    found = _compared(_before())
    assert (found.problems, found.decomposed) == ((), ())


def _set(target: Any, name: str, value: Any) -> None:
    setattr(target, name, value)


def _swap(entries: Any, i: int, j: int) -> None:
    kept = [type(entry).FromString(entry.SerializeToString()) for entry in entries]
    kept[i], kept[j] = kept[j], kept[i]
    del entries[:]
    entries.extend(kept)


def _node(model: ModelProto, output: str) -> NodeProto:
    return next(node for node in model.graph.node if node.output[0] == output)


def _to_ints(model: ModelProto) -> None:
    attribute = next(a for a in _node(model, "y").attribute if a.name == "a")
    attribute.CopyFrom(helper.make_attribute("a", [1, 2]))


def _without(entries: Any, name: str) -> None:
    (position,) = (i for i, entry in enumerate(entries) if entry.name == name)
    del entries[position]


def _orphan_factor(model: ModelProto) -> None:
    model.graph.initializer.append(_tensor("F", 3))


def _orphan_constant(model: ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("Constant", [], ["F"], value_float=1.0))


def _foreign_encoder(model: ModelProto) -> None:
    model.graph.node[0].op_type = "MatMulInteger"


def _unknown_field(model: ModelProto) -> None:
    # Field 999, a varint: what a newer ONNX might have written.
    changed = ModelProto.FromString(model.SerializeToString() + b"\xb8\x3e\x01")
    model.CopyFrom(changed)


_MUTATIONS: dict[str, Callable[[ModelProto], Any]] = {
    "model doc string": lambda m: m.ClearField("doc_string"),
    "model metadata": lambda m: m.ClearField("metadata_props"),
    "producer": lambda m: _set(m, "producer_name", "other"),
    "opset": lambda m: _set(m.opset_import[0], "version", 21),
    "function": lambda m: m.ClearField("functions"),
    "node in a function": lambda m: _set(m.functions[0].node[0], "op_type", "Mul"),
    "unknown field": _unknown_field,
    "graph name": lambda m: _set(m.graph, "name", "other"),
    "graph input": lambda m: _without(m.graph.input, "s"),
    "shape of an input": lambda m: m.graph.input[0].type.tensor_type.ClearField("shape"),
    "order of outputs": lambda m: m.graph.output.append(m.graph.output[0]),
    "value_info": lambda m: _without(m.graph.value_info, "m"),
    "annotation": lambda m: m.graph.ClearField("quantization_annotation"),
    "initializer lost": lambda m: _without(m.graph.initializer, "spare"),
    "initializers reordered": lambda m: _swap(m.graph.initializer, 0, 1),
    "initializer changed": lambda m: _set(m.graph.initializer[0], "raw_data", bytes(32)),
    "initializer added": _orphan_factor,
    "Constant added": _orphan_constant,
    "node doc string": lambda m: _node(m, "k").ClearField("doc_string"),
    "node metadata": lambda m: _node(m, "k").ClearField("metadata_props"),
    "node renamed": lambda m: _set(_node(m, "k"), "name", "other"),
    "node lost": lambda m: _without(m.graph.node, "n4"),
    "nodes reordered": lambda m: _swap(m.graph.node, 5, 6),
    "node input changed": lambda m: m.graph.node[-2].input.__setitem__(0, "m"),
    "attribute type": _to_ints,
    "attribute lost": lambda m: _node(m, "y").attribute.pop(),
    "decomposed node renamed": lambda m: _set(_node(m, "g"), "name", "other"),
    "decomposed node's doc string": lambda m: _node(m, "g").ClearField("doc_string"),
    "decomposed node's alpha": lambda m: _set(_node(m, "g").attribute[0], "f", 0.25),
    "decomposed node's bias": lambda m: _node(m, "g").input.pop(),
    "foreign encoder": _foreign_encoder,
    "weight stays": lambda m: m.graph.initializer.insert(0, _tensor("w", 6, 8)),
    "node in a branch": lambda m: _set(_node(m, "i").attribute[1].g.node[0], "op_type", "Sub"),
    "doc string of a branch": lambda m: _set(_node(m, "i").attribute[0].g, "doc_string", "new"),
}


@pytest.mark.parametrize("name", _MUTATIONS)
def test_a_change_elsewhere_is_caught(name: str) -> None:
    model = _after()
    _MUTATIONS[name](model)
    assert _compared(model).problems


def test_external_bytes_are_compared(tmp_path: Path) -> None:
    model = _before()
    tensor = model.graph.initializer[1]
    data = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    for name, content in (("same", data), ("other", data[:-1] + b"\x00")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "w.bin").write_bytes(content)
    assert compare(model, model, tmp_path / "same", tmp_path / "same").problems == ()
    assert compare(model, model, tmp_path / "same", tmp_path / "other").problems


def test_distance_counts_what_differs() -> None:
    a = np.array([3.0, 4.0, np.nan, np.inf])
    assert relative_distance(a, a) == 0
    assert relative_distance(a, np.array([3.0, 4.5, np.nan, np.inf])) == pytest.approx(0.1)
    for wrong in (
        [3.0, 4.0, 0.0, np.inf],
        [3.0, 4.0, np.nan, -np.inf],
        [np.nan, 4, np.nan, np.inf],
    ):
        assert relative_distance(a, np.array(wrong)) == np.inf
    assert relative_distance(a, a.astype(np.float32)) == np.inf
    assert relative_distance(a, a[None]) == np.inf
    assert relative_distance(np.zeros(2), np.ones(2)) == np.inf
    assert relative_distance(np.array([1, 2]), np.array([1, 3])) == 0.5
    assert distances([a], [a, a]) == [np.inf]


def test_bits_tell_zeros_apart() -> None:
    nan = np.array([np.nan])
    assert same_bits(nan, nan)
    assert not same_bits(np.array([0.0]), np.array([-0.0]))
    assert not same_bits(np.array([1]), np.array([1.0]))
    assert not same_bits(np.array(["a"], object), np.array(["b"], object))


def test_sequences_and_maps_are_unpacked() -> None:
    arrays = unpacked([{1: 0.5, 2: 0.25}, None, np.ones(3)])
    assert [array.tolist() for array in arrays] == [[1, 2], [0.5, 0.25], [1, 1, 1]]


def test_other_exit_codes_are_no_outcome() -> None:
    done = ran(None, 1, "", "Traceback")  # type: ignore[arg-type]
    assert done.outcome == "exit code 1"
