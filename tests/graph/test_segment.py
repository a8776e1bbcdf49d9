"""Parts of a model, and the walk through it: the same tensors as in the whole."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, ValueInfoProto

from alds_onnx.calibrate.runner import Runner
from alds_onnx.calibrate.walk import Walk
from alds_onnx.evaluate.sessions import RunError
from alds_onnx.graph.segment import live_tensors, prefix
from alds_onnx.runtimes import Provider
from tests.graph.builders import Array, normal, parse, run

# The same operators in onnxruntime, fused differently.
ROUNDING = 1e-5

BRANCHING = """m (float[N,8] x) => (float[N,8] y, float[N,8] middle) {
    two = Constant<value = float {2.0}>()
    a = MatMul(x, w)
    b = Relu(a)
    middle = Mul(b, two)
    zero = Constant<value = float {0.0}>()
    total = ReduceSum<keepdims=0>(x)
    up = Greater(total, zero)
    c = If(up) <
        then_branch = t () => (float[N,8] s) { s = Add(a, two) },
        else_branch = e () => (float[N,8] d) { d = Mul(b, w2) }
    >
    r = Add(c, b)
    q = MatMul(r, w)
    y = Add(q, x)
}"""


def branching() -> ModelProto:
    return parse(BRANCHING, {"w": normal(8, 8), "w2": normal(8)})


def runner(threads: int = 2) -> Runner:
    batches = tuple({"x": normal(3, 8, seed=seed)} for seed in range(6))
    return Runner(batches=batches, folder=Path("/nowhere"), threads=threads, provider=Provider.CPU)


def everything(model: ModelProto, feed: dict[str, Array]) -> dict[str, Array]:
    whole = ModelProto()
    whole.CopyFrom(model)
    names = [n for node in model.graph.node for n in node.output]
    del whole.graph.output[:]
    whole.graph.output.extend(ValueInfoProto(name=name) for name in names)
    return dict(feed) | dict(zip(names, run(whole, feed), strict=True))


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_walk_sees_what_the_whole_model_computes(step: int) -> None:
    model, data = branching(), runner()
    alive = live_tensors(model)
    wanted = [everything(model, dict(feed)) for feed in data.batches]
    with Walk(data, model) as walk:
        for node in range(0, len(model.graph.node) + 1, step):
            walk.go(model, node)
            for batch, tensors in enumerate(wanted):
                for name in alive(node):
                    np.testing.assert_allclose(
                        walk.tensor(batch, name), tensors[name], rtol=ROUNDING, atol=ROUNDING
                    )


def test_what_is_alive() -> None:
    alive = live_tensors(branching())
    assert set(alive(0)) == {"x"}
    assert set(alive(7)) == {"x", "a", "b", "middle", "up"}, "also what the branches read"
    assert set(alive(8)) == {"x", "b", "middle", "c"}
    assert set(alive(11)) == {"y", "middle"}


def test_a_prefix_computes_the_same_and_nothing_more() -> None:
    model = branching()
    feed = {"x": normal(3, 8)}
    wanted = everything(model, feed)
    part = prefix(model, ["r", "b"])
    assert "q" not in {name for node in part.graph.node for name in node.output}
    for name, found in zip(["r", "b"], run(part, feed), strict=True):
        np.testing.assert_allclose(found, wanted[name], rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("fails", [False, True])
def test_the_folder_of_a_walk_goes(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("alds_onnx.calibrate.walk._LARGEST_IN_MEMORY", 0)
    model = branching()
    broken = ModelProto()
    broken.CopyFrom(model)
    broken.graph.node[2].op_type = "NoSuchOperator"
    with Walk(runner(), model) as walk:
        assert list(tmp_path.rglob("*.npy"))
        if fails:
            with pytest.raises(RunError):
                walk.go(broken, 5)
        else:
            walk.go(model, 5)
    assert not list(tmp_path.iterdir())
