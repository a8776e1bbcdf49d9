"""Samples are taken apart only where that changes nothing, and come together again as they were."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from onnx import ModelProto

from alds_onnx.calibrate.reader import BATCH, Feed
from alds_onnx.calibrate.runner import Runner
from alds_onnx.calibrate.split import split
from alds_onnx.calibrate.units import Units, find_units
from alds_onnx.evaluate.sessions import RunError
from alds_onnx.runtimes import Provider
from tests.graph.builders import NOWHERE, Array, normal, parse

# Descriptions have unit power, and are computed from float32 outputs of other batches.
ROUNDING = 1e-4


def units(model: ModelProto, feeds: Sequence[Feed], threads: int = 1) -> Units:
    runner = Runner(batches=tuple(feeds), folder=NOWHERE, threads=threads, provider=Provider.CPU)
    return find_units(runner, model)


def one_input(body: str, **constants: Array) -> ModelProto:
    return parse(f"m (float[N,6] x) => (float[N,K] y) {{ {body} }}", constants)


def dense() -> ModelProto:
    return one_input("h = MatMul(x, w) y = Relu(h)", w=normal(6, 5))


def batches(x: Array, sizes: Sequence[int]) -> list[Feed]:
    return [{"x": part} for part in np.split(x, np.cumsum(sizes)[:-1])]


def assert_same(found: Sequence[Feed], expected: Sequence[Feed]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)


BATCHED = [[24], [1] * 24, [8, 8, 8], [5, 12, 7], [23, 1], [1, 23]]


@pytest.mark.parametrize("sizes", BATCHED, ids=str)
def test_samples_that_do_not_see_each_other_are_taken_apart(sizes: list[int]) -> None:
    """In order, whatever the batches were; so the split is the same too."""
    x = normal(24, 6)
    found, single = (units(dense(), batches(x, each)) for each in (sizes, [1] * 24))
    assert_same(found.feeds, [{"x": row[None]} for row in x])
    assert found.together == BATCH
    np.testing.assert_allclose(found.outputs, single.outputs, rtol=0, atol=ROUNDING)
    first, second = (split(one.outputs, 0, choose=False) for one in (found, single))
    assert np.array_equal(first.check, second.check)
    assert first.apart == second.apart


MIXING = {
    "softmax": "h = MatMul(x, w) y = Softmax<axis=0>(h)",
    "mean": "h = MatMul(x, w) m = ReduceMean<axes=[0], keepdims=1>(h) y = Sub(h, m)",
    "one output for all": "h = MatMul(x, w) y = ReduceMean<axes=[0], keepdims=1>(h)",
    "running sum": "zero = Constant<value=int64{0}>() h = MatMul(x, w) y = CumSum(h, zero)",
    "neighbours": "t = Transpose<perm=[1,0]>(x) h = MatMul(x, t) y = Relu(h)",
    "flat": "h = MatMul(x, w) y = Flatten<axis=0>(h)",
    "twice": "h = MatMul(x, w) y = Concat<axis=0>(h, h)",
    "chosen": "h = MatMul(x, w) i = NonZero(h) j = Cast<to=1>(i) y = Transpose<perm=[1,0]>(j)",
}


@pytest.mark.parametrize("sizes", [[24], [8, 8, 8], [5, 12, 7], [1] * 24], ids=str)
@pytest.mark.parametrize("kind", MIXING)
def test_samples_that_see_each_other_stay_together(kind: str, sizes: list[int]) -> None:
    """Feeds of one sample each too: they are not joined to others."""
    data = batches(normal(24, 6), sizes)
    found = units(one_input(MIXING[kind], w=normal(6, 5)), data)
    assert_same(found.feeds, data)
    assert found.together == 1
    assert len(found.outputs) == len(data)
    assert np.isfinite(found.outputs).all()
    assert_same(found.batches(range(len(data))), data)


def test_a_batch_that_is_declared_but_fails_is_no_batch() -> None:
    """The first axis is free, but a Reshape wants four samples."""
    shape = np.array([4, 5])
    model = one_input("h = MatMul(x, w) y = Reshape(h, shape)", w=normal(6, 5), shape=shape)
    data = batches(normal(12, 6), [4, 4, 4])
    found = units(model, data)
    assert_same(found.feeds, data)
    assert found.together == 1


def test_a_fixed_batch_stays_whole() -> None:
    model = parse("m (float[4,6] x) => (float[4,5] y) { y = MatMul(x, w) }", {"w": normal(6, 5)})
    data = batches(normal(12, 6), [4, 4, 4])
    found = units(model, data)
    assert_same(found.feeds, data)
    assert found.together == 1


def test_a_model_that_does_not_run_is_an_error() -> None:
    model = one_input("h = Reshape(x, shape) y = Relu(h)", shape=np.array([7, 5]))
    with pytest.raises(RunError):
        units(model, batches(normal(4, 6), [4]))


TWO = """m (float[N,6] x, float[{first}] z) => (float[N,5] y) {{
    h = MatMul(x, w) y = Add(h, z)
}}"""


def two_inputs(first: str) -> ModelProto:
    return parse(TWO.format(first=first), {"w": normal(6, 5)})


def test_several_inputs_are_taken_apart_together() -> None:
    x, z = normal(12, 6), normal(12, 5)
    found = units(two_inputs("N,5"), [{"x": x[:7], "z": z[:7]}, {"x": x[7:], "z": z[7:]}])
    assert_same(found.feeds, [{"x": a[None], "z": b[None]} for a, b in zip(x, z, strict=True)])
    assert_same(found.batches(range(3)), [{"x": x[i : i + 1], "z": z[i : i + 1]} for i in range(3)])
    (last,) = {len(batch["x"]) for batch in found.batches(range(12))}
    assert last == 3, "four batches"


@pytest.mark.parametrize(
    ("first", "shape"), [("1,5", (1, 5)), ("5", (5,)), ("K", (5,)), ("M,5", (1, 5))]
)
def test_an_input_that_is_not_a_batch_keeps_all_together(
    first: str, shape: tuple[int, ...]
) -> None:
    data = [{"x": normal(4, 6, seed=i), "z": normal(*shape, seed=i)} for i in range(3)]
    found = units(two_inputs(first), data)
    assert_same(found.feeds, data)
    assert found.together == 1


def test_an_input_that_is_a_number_keeps_all_together() -> None:
    model = parse(
        "m (float[N,6] x, float t) => (float[N,5] y) { h = MatMul(x, w) y = Mul(h, t) }",
        {"w": normal(6, 5)},
    )
    data = [{"x": normal(4, 6, seed=i), "t": np.float32(i)} for i in range(3)]
    data = [{name: np.asarray(array) for name, array in feed.items()} for feed in data]
    found = units(model, data)
    assert_same(found.feeds, data)
    assert found.together == 1


def test_a_scalar_that_is_all_there_is_is_a_unit() -> None:
    model = parse("m (float t) => (float y) { y = Sin(t) }")
    data = [{"t": np.asarray(np.float32(i))} for i in range(5)]
    found = units(model, data)
    assert_same(found.feeds, data)
    assert len(np.unique(found.outputs)) == 5


def sequences() -> tuple[ModelProto, list[Feed]]:
    """Batches of sequences, of two lengths in turn."""
    model = parse(
        "m (float[N,T,6] x) => (float[N,K] y) { h = MatMul(x, w) "
        "y = ReduceMax<axes=[1], keepdims=0>(h) }",
        {"w": normal(6, 5)},
    )
    return model, [{"x": normal(3 + i, 4 + i % 2, 6, seed=i)} for i in range(5)]


def test_only_samples_of_the_same_shape_are_joined() -> None:
    model, data = sequences()
    found = units(model, data)
    assert len(found.feeds) == sum(len(feed["x"]) for feed in data)
    joined = found.batches(range(len(found.feeds)))
    for length in (4, 5):
        own = [feed["x"] for feed in data if feed["x"].shape[1] == length]
        rows = [batch["x"] for batch in joined if batch["x"].shape[1] == length]
        assert np.array_equal(np.concatenate(rows), np.concatenate(own))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 31, 128, 129, 300])
def test_batches_have_each_sample_once(count: int) -> None:
    """At most so many as a model runs at once, and four batches if there are four samples."""
    found = units(dense(), [{"x": normal(300, 6)}])
    numbers = np.random.default_rng(0).permutation(300)[:count]
    joined = found.batches(numbers)
    sizes = [len(batch["x"]) for batch in joined]
    assert sum(sizes) == count
    assert len(joined) >= min(4, count)
    assert max(sizes, default=0) <= BATCH
    if count:
        rows = np.concatenate([batch["x"] for batch in joined])
        assert np.array_equal(rows, normal(300, 6)[numbers])
    if count >= 4 * BATCH:
        assert sorted(sizes)[1:] == [BATCH] * (len(sizes) - 1)


def test_a_sample_whose_output_is_not_finite_can_be_taken_apart() -> None:
    """Logarithms of what is below zero, in the first sample and in others."""
    x = np.abs(normal(12, 6))
    x[[0, 7], 2] = [-1.0, 0.0]
    found = units(one_input("y = Log(x)"), [{"x": x}])
    assert len(found.feeds) == 12
    assert np.isfinite(found.outputs).all()


def test_threads_do_not_matter() -> None:
    data = batches(normal(60, 6), [7] * 8 + [4])
    first, second = (units(dense(), data, threads) for threads in (1, 3))
    assert_same(first.feeds, second.feeds)
    assert np.array_equal(first.outputs, second.outputs)
