"""Definitions, uses and names across graphs, subgraphs and functions."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import AttributeProto, NodeProto, TensorProto, helper, numpy_helper

from alds_onnx.cuts import Cut
from alds_onnx.graph.operators import OPERATORS
from alds_onnx.graph.operators.building import Names
from alds_onnx.graph.scopes import (
    Key,
    Kind,
    ModelIndex,
    Site,
    Use,
    default_opset,
    has_arguments,
    integer,
    integers,
    subgraphs,
    unused,
)
from alds_onnx.graph.tensors import every
from tests.graph.builders import normal, only_layer, parse
from tests.graph.test_rewrite_rest import function_model, if_model


def test_definitions() -> None:
    model = parse(
        "g (float[3] x, float[3] W) => (float[3] y) { y = Add(x, W) z = Add(y, V) }",
        {"W": normal(3), "V": normal(3)},
    )
    index = ModelIndex(model)
    kinds = {name: d.kind for name, d in index.scopes[0].definitions.items()}
    assert kinds == {
        "x": Kind.INPUT, "W": Kind.INITIALIZER, "V": Kind.INITIALIZER, "y": Kind.NODE,
        "z": Kind.NODE,
    }  # fmt: skip
    overridable = [n for n, d in index.scopes[0].definitions.items() if d.overridable]
    assert overridable == ["W"]
    assert index.resolve(0, "nothing") is None
    assert index.uses[Key(0, "y")] == [Use(Site(0, 1), 0), Use(None, -1)]


def test_omitted_inputs_and_outputs_are_no_names() -> None:
    model = parse("g (float[3] x) => (float[3] y) { y = Clip(x) }")
    model.graph.node[0].input.extend(["", "x"])
    model.graph.node[0].output.append("")
    index = ModelIndex(model)
    assert set(index.scopes[0].definitions) == {"x", "y"}
    assert index.uses[Key(0, "x")] == [Use(Site(0, 0), 0), Use(Site(0, 0), 2)]


def test_subgraphs_see_the_graph_around_and_functions_do_not() -> None:
    index = ModelIndex(if_model())
    for branch in (1, 2):
        assert index.scopes[branch].parent == 0
        found = index.resolve(branch, "shared")
        assert found is not None
        assert found.key == Key(0, "shared")
    assert [use.site.scope for use in index.uses[Key(0, "shared")] if use.site] == [1, 2]
    index = ModelIndex(function_model())
    assert index.scopes[1].is_function
    assert index.resolve(1, "x") is None


def test_nodes_of_a_subgraph_come_behind_the_node_that_holds_it() -> None:
    index = ModelIndex(if_model())
    assert [node.op_type for _, node in index.walk()] == ["If", "MatMul", "Gemm", "MatMul", "Gemm"]
    for site, node in index.walk():
        assert index.node(site) == node


def test_graphs_in_a_list_attribute() -> None:
    node = NodeProto(op_type="Custom", name="c", domain="com.example")
    attribute = node.attribute.add(name="bodies", type=AttributeProto.GRAPHS)
    for name in "ab":
        attribute.graphs.add(name=name)
    assert [(label, graph.name) for label, graph in subgraphs(node)] == [
        ("bodies[0]", "a"),
        ("bodies[1]", "b"),
    ]


def test_labels_of_nodes_without_name_and_output() -> None:
    model = parse("g (float[3] x) => (float[3] y) { y = Relu(x) }")
    node = model.graph.node.add(op_type="Run")
    node.attribute.add(name="body", type=AttributeProto.GRAPH).g.name = "b"
    assert ModelIndex(model).scopes[1].path == "Run.body/"


def test_every_tensor_is_found() -> None:
    model = if_model()
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(normal(1), "values"),
        numpy_helper.from_array(np.array([2]), "indices"),
        [4],
    )
    model.graph.sparse_initializer.append(sparse)
    node = helper.make_node("Constant", [], ["c"], sparse_value=sparse)
    node.attribute.append(helper.make_attribute("list", [TensorProto(name="one")]))
    node.attribute.append(helper.make_attribute("sparse list", [sparse]))
    model.graph.node.append(node)
    names = [tensor.name for tensor in every(TensorProto, model)]
    pair = ["values", "indices"]
    assert sorted(names) == sorted(["shared", "bias", *pair * 3, "one", "own", "own"])


def test_attributes() -> None:
    node = helper.make_node("N", [], [], axis=-1, axes=[1, 2])
    assert integer(node, "axis", 7) == -1
    assert integer(node, "other", 7) == 7
    assert integers(node, "axes") == (1, 2)
    assert integers(node, "other") is None
    assert not has_arguments(node)
    node.attribute.add(name="to", ref_attr_name="kind")
    assert has_arguments(node)


@pytest.mark.parametrize(("imports", "expected"), [
    ([("", 13)], 13),
    ([("ai.onnx", 15), ("ai.onnx.ml", 3)], 15),
    ([("ai.onnx.ml", 3)], 1),
    ([], 1),
])  # fmt: skip
def test_default_opset(imports: list[tuple[str, int]], expected: int) -> None:
    assert default_opset([helper.make_opsetid(*pair) for pair in imports]) == expected


def test_unused_names() -> None:
    names = {"a", "a_1"}
    assert [unused("a", names), unused("a", names), unused("b", names)] == ["a_2", "a_3", "b"]
    assert names == {"a", "a_1", "a_2", "a_3", "b"}


def test_slices_of_an_activation_of_unknown_rank_are_a_mistake() -> None:
    model = parse("g (float[8] x) => (float[12] y) { y = MatMul(x, W) }", {"W": normal(8, 12)})
    layer = only_layer(model)
    names = Names(weights=("e", "d"), fresh=lambda stem: stem)
    cut = Cut(num_slices=2, rank=1)
    with pytest.raises(ValueError, match="known rank"):
        OPERATORS[layer.op].build(layer, model.graph.node[0], cut, names)
