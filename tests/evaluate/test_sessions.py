"""Sessions, random inputs, measured shapes and times."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, ValueInfoProto, helper

from alds_onnx.errors import UsageError
from alds_onnx.evaluate import latency, samples
from alds_onnx.evaluate.latency import measure
from alds_onnx.evaluate.random_inputs import Hints, Recipe, check_shapes, find_recipe
from alds_onnx.evaluate.samples import (
    measured_shapes,
    random_samples,
)
from alds_onnx.evaluate.sessions import (
    Execution,
    Input,
    Provider,
    RunError,
    Session,
    check_provider,
    flatten,
)
from alds_onnx.graph.scopes import Key, ModelIndex
from alds_onnx.graph.shapes import ends_of_ids
from tests.graph.builders import normal, parse

ONE = Execution(threads=1)
HERE = Path()


def session(graph: str, **constants: np.ndarray) -> Session:
    return Session(parse(graph, constants), HERE, ONE)


def relu(shape: str, kind: str = "float") -> Session:
    return session(f"g ({kind}[{shape}] x) => ({kind}[{shape}] y) {{ y = Identity(x) }}")


def without_shape() -> ModelProto:
    """An input of unknown rank: the checker refuses that, onnxruntime does not."""
    model = parse("g (float[3] x) => (float[3] y) { y = Relu(x) }")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    return model


def test_inputs_and_outputs() -> None:
    found = session("g (float[N, 3] x, int64[2] i) => (float[N, 3] y) { y = Relu(x) }")
    assert found.inputs == (
        Input(name="x", type="tensor(float)", shape=("N", 3)),
        Input(name="i", type="tensor(int64)", shape=(2,)),
    )
    assert found.output_names == ("y",)


def test_run_gives_the_outputs_asked_for() -> None:
    found = session("g (float[3] x) => (float[3] y, float[3] z) { y = Relu(x) z = Neg(x) }")
    x = normal(3)
    np.testing.assert_array_equal(found.run({"x": x})[1], -x)
    (only,) = found.run({"x": x}, ["z"])
    np.testing.assert_array_equal(only, -x)


def one_line(error: pytest.ExceptionInfo[RunError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    assert ort.__version__ in message
    return message


def test_unknown_operator_is_a_run_error() -> None:
    model = parse("g (float[3] x) => (float[3] y) { y = com.Nothing(x) }", imports=', "com" : 1')
    with pytest.raises(RunError, match="cannot load it") as caught:
        Session(model, HERE, ONE)
    one_line(caught)


@pytest.mark.parametrize("feeds", [{}, {"x": normal(4)}, {"x": np.array(["a"] * 3)}, {"z": 1}])
def test_bad_inputs_are_a_run_error(feeds: dict[str, np.ndarray]) -> None:
    with pytest.raises(RunError, match="cannot run it") as caught:
        relu("3").run(feeds)
    one_line(caught)


def test_long_reasons_are_cut() -> None:
    with pytest.raises(RunError) as caught:
        relu("3").run({"n" * 1000: normal(3)})
    assert one_line(caught).endswith("...")
    assert len(one_line(caught)) < 300


def test_external_data_is_found_in_the_folder(tmp_path: Path) -> None:
    model = parse("g (float[3] x) => (float[3] y) { y = Add(x, W) }", {"W": normal(3)})
    tensor = model.graph.initializer[0]
    (tmp_path / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", "0"), ("length", "12")):
        tensor.external_data.add(key=key, value=value)
    x = normal(3, seed=1)
    (y,) = Session(model, tmp_path, ONE).run({"x": x})
    np.testing.assert_array_equal(y, x + normal(3))
    with pytest.raises(RunError):
        Session(model, tmp_path / "other", ONE)


def test_providers(monkeypatch: pytest.MonkeyPatch) -> None:
    check_provider(Provider.CPU)
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UsageError, match=r"'cuda' is not in this onnxruntime .* which has CPU"):
        check_provider(Provider.CUDA)


class Sparse:
    def toarray(self) -> list[int]:
        return [1, 2]


@pytest.mark.parametrize(("output", "expected"), [
    (np.array([1, 2]), [[1, 2]]),
    ([np.array([1]), np.array([2])], [[1], [2]]),
    ([], []),
    ({"b": 2.0, "a": 1.0}, [1.0, 2.0]),
    ([{1: 0.5}, {1: 0.25}], [0.5, 0.25]),
    (Sparse(), [[1, 2]]),
    ("text", ["text"]),
])  # fmt: skip
def test_flatten(output: object, expected: list[object]) -> None:
    found = flatten(output)
    assert all(isinstance(array, np.ndarray) for array in found)
    assert [array.tolist() for array in found] == expected


def test_shapes_that_fit() -> None:
    found = relu("N, 3, H")
    check_shapes(found, {})
    check_shapes(found, {"x": (7, 3, 9)})
    check_shapes(Session(without_shape(), HERE, ONE), {"x": (2, 3, 4)})


@pytest.mark.parametrize(("shapes", "reason"), [
    ({"z": (1,)}, "no input 'z'; the model has 'x'"),
    ({"x": (7, 3)}, r"shape \['N', 3, 'H'\], not \[7, 3\]"),
    ({"x": (7, 4, 9)}, r"not \[7, 4, 9\]"),
])  # fmt: skip
def test_shapes_that_do_not_fit(shapes: dict[str, tuple[int, ...]], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        check_shapes(relu("N, 3, H"), shapes)
    with pytest.raises(UsageError, match=reason):
        find_recipe(relu("N, 3, H"), shapes, Hints(), 0)


@pytest.mark.parametrize(("shape", "known_sizes", "expected"), [
    ("2, 3", {}, (2, 3)),
    ("N, 3", {}, (1, 3)),
    ("N, C, H, W", {("x", 1): 5}, (1, 5, 224, 224)),
    ("N, L", {}, (1, 224)),
    ("N", {}, (1,)),
    ("N, C", {("x", 0): 4, ("other", 1): 9}, (4, 224)),
    ("2, 3", {("x", 1): 5}, (2, 3)),
    ("0, N", {}, (0, 224)),
])  # fmt: skip
def test_sizes_of_free_axes(
    shape: str, known_sizes: dict[tuple[str, int], int], expected: tuple[int, ...]
) -> None:
    assert find_recipe(relu(shape), {}, Hints(sizes=known_sizes), 0).shapes == {"x": expected}


def test_negative_sizes_are_free() -> None:
    """Old tf2onnx wrote -1 for a free batch."""
    model = parse("g (float[3, 4] x) => (float[3, 4] y) { y = Relu(x) }")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    recipe = find_recipe(Session(model, HERE, ONE), {}, Hints(), 0)
    assert recipe.shapes == {"x": (1, 4)}


def test_sizes_asked_for_are_taken() -> None:
    found = session("g (float[N, M] x, float[K] z) => (float[N, M] y) { y = Relu(x) }")
    assert find_recipe(found, {"x": (5, 6)}, Hints(), 0).shapes == {"x": (5, 6), "z": (1,)}


def test_a_size_is_looked_for_until_the_model_runs() -> None:
    """Only a width of 48 and a height of 320 have 48 · 320 entries."""
    found = session("g (float[N, H, W] x) => (float[n, m] y) { y = Reshape(x, s) }",
                    s=np.array([1, 48 * 320]))  # fmt: skip
    assert find_recipe(found, {}, Hints(), 0).shapes == {"x": (1, 48, 320)}


def test_no_size_fits() -> None:
    found = session("g (float[N] x) => (float[n] y) { y = Reshape(x, s) }", s=np.array([7]))
    with pytest.raises(RunError, match=r"cannot run it.*--input-shape"):
        find_recipe(found, {}, Hints(), 0)


@pytest.mark.parametrize(("rows", "limit"), [(200, 100), (50, 10), (5, 2), (1, 1)])
def test_integers_stay_below_a_limit_that_works(rows: int, limit: int) -> None:
    """An index beyond a table is an error, and no one declares the size of the table."""
    found = session("g (int64[64] i) => (float[64, m] y) { y = Gather(T, i) }", T=normal(rows, 2))
    assert find_recipe(found, {}, Hints(), 0).end == limit


def test_types_of_random_inputs() -> None:
    kinds = {"float": "f4", "double": "f8", "float16": "f2", "int32": "i4", "int64": "i8",
             "uint8": "u1", "bool": "?", "string": "O"}  # fmt: skip
    inputs = ", ".join(f"{kind}[500] {kind}_" for kind in kinds)
    found = session(f"g ({inputs}) => (float[500] y) {{ y = Relu(float_) }}")
    shapes = {f"{k}_": (500,) for k in kinds}
    recipe = Recipe(inputs=found.inputs, shapes=shapes, ends={}, end=7)
    feeds = recipe.draw(np.random.default_rng(0))
    for kind, dtype in kinds.items():
        assert feeds[f"{kind}_"].dtype == np.dtype(dtype)
        assert feeds[f"{kind}_"].shape == (500,)
    assert set(feeds["string_"]) == {"a"}
    assert feeds["bool_"].all()
    assert set(feeds["int64_"]) == set(range(7))
    assert feeds["float_"].std() == pytest.approx(1, abs=0.2)
    found.run(feeds)


def test_scalar_inputs() -> None:
    found = session("g (float x, int64 i) => (float y) { y = Relu(x) }")
    recipe = find_recipe(found, {}, Hints(), 0)
    assert recipe.shapes == {"x": (), "i": ()}
    feeds = recipe.draw(np.random.default_rng(0))
    assert all(isinstance(array, np.ndarray) for array in feeds.values())


def test_sequences_need_data() -> None:
    model = parse("g (float[3] x) => (float[3] y) { y = SequenceAt(s, i) }",
                  {"i": np.array(0)})  # fmt: skip
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [3]))
    model.graph.input.append(ValueInfoProto(name="s", type=kind))
    with pytest.raises(RunError, match=r"'s' is of type seq.*--calibration"):
        find_recipe(Session(model, HERE, ONE), {}, Hints(), 0)


def test_a_symbol_has_one_size_in_all_inputs() -> None:
    """The sum runs only if ids, roles and distances agree, whatever the axis."""
    inputs = "int64[1, seq] ids, int64[1, seq] roles, float[seq, seq] d, float[b, seq] z"
    found = session(f"""g ({inputs}) => (float[n, m] y) {{
                         r = Add(ids, roles) f = Cast<to=1>(r) e = Add(f, d) y = Add(e, z) }}""")
    shapes = find_recipe(found, {}, Hints(), 0).shapes
    assert shapes == {"ids": (1, 224), "roles": (1, 224), "d": (224, 224), "z": (1, 224)}
    shapes = find_recipe(found, {"roles": (1, 5)}, Hints(), 0).shapes
    assert shapes == {"ids": (1, 5), "roles": (1, 5), "d": (5, 5), "z": (1, 5)}
    shapes = find_recipe(found, {}, Hints(sizes={("d", 0): 7}), 0).shapes
    assert shapes["ids"] == shapes["roles"] == (1, 7)


def test_a_symbol_for_sizes_that_differ() -> None:
    """Some exporters call every free axis '?'."""
    found = session("g (float[?, ?] x, float[?] z) => (float[n, m] y) { y = Reshape(x, s) }"
                    .replace("?", "q"), s=np.array([1, 320]))  # fmt: skip
    assert find_recipe(found, {}, Hints(), 0).shapes["x"] == (1, 320)


def test_the_cache_of_a_decoder() -> None:
    """The mask covers the past and the new tokens; the check is the Concat of both."""
    inputs = ("int64[b, sequence_length] input_ids, float[b, 2, past_sequence_length, 4] past_k, "
              "int64[b, total_sequence_length] attention_mask")  # fmt: skip
    found = session(f"""g ({inputs}) => (float[n, m, k, l] y) {{
        f = Cast<to=1>(input_ids) u = Unsqueeze(f, a) c = Expand(u, e) k = Concat<axis=2>(past_k, c)
        w = Cast<to=1>(attention_mask) v = Unsqueeze(w, a) y = Mul(k, v) }}""",
        a=np.array([1, 3]), e=np.array([1, 2, 1, 4]))  # fmt: skip
    recipe = find_recipe(found, {}, Hints(), 0)
    past, new = recipe.shapes["past_k"][2], recipe.shapes["input_ids"][1]
    assert recipe.shapes["attention_mask"] == (1, past + new)
    assert (recipe.draw(np.random.default_rng(0))["attention_mask"] == 1).all()


def test_ids_stay_below_their_table() -> None:
    graph = """g (int64[b, t] ids, int64[b, t] kinds) => (float[b, t, m] y) {
        i = Identity(ids) e = Gather(T, i) k = Gather(K, kinds) y = Add(e, k) }"""
    model = parse(graph, {"T": normal(5000, 2), "K": normal(2, 2)})
    ends = ends_of_ids(ModelIndex(model))
    assert ends == {"ids": 5000, "kinds": 2}
    feeds = find_recipe(Session(model, HERE, ONE), {}, Hints(ends=ends), 0).draw(
        np.random.default_rng(0)
    )
    assert 1000 < feeds["ids"].max() < 5000
    assert set(feeds["kinds"].ravel()) == {0, 1}


def test_lengths_are_those_of_the_sequence() -> None:
    found = session("g (float[b, frames, 4] x, int64[b] x_lengths) => (float[n, m, k] y) {"
                    " y = Relu(x) }")  # fmt: skip
    feeds = find_recipe(found, {"x": (2, 9, 4), "x_lengths": (2,)}, Hints(), 0).draw(
        np.random.default_rng(0)
    )
    assert (feeds["x_lengths"] == 9).all()


MODEL = parse(
    "g (float[N, 8] x) => (float[N, 12] y) { h = MatMul(x, W) y = Relu(h) }", {"W": normal(8, 12)}
)


def test_random_samples_are_seeded() -> None:
    def draw(seed: int) -> samples.Samples:
        return random_samples(MODEL, HERE, ONE, shapes={"x": (3, 8)}, hints=Hints(), seed=seed)

    one, same, other = draw(0), draw(0), draw(1)
    assert one.random
    assert one.shapes == {"x": (3, 8)}
    assert len(one.feeds) == 4
    first = [feeds["x"].tobytes() for feeds in one.feeds]
    assert len(set(first)) == 4
    assert first == [feeds["x"].tobytes() for feeds in same.feeds]
    assert first[0] != other.feeds[0]["x"].tobytes()


def test_slow_models_get_one_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "_SLOW_SECONDS", -1.0)
    assert len(random_samples(MODEL, HERE, ONE, shapes={}, hints=Hints(), seed=0).feeds) == 1


def test_measured_shapes() -> None:
    model = ModelProto()
    model.CopyFrom(MODEL)
    model.graph.node[1].output[0] = model.graph.output[0].name = "h/measured_shape"
    before = model.SerializeToString(deterministic=True)
    found = measured_shapes(model, HERE, ONE, {"x": normal(5, 8)}, {"h", "x", "W"})
    assert found == {Key(0, "h"): (5, 12), Key(0, "x"): (5, 8), Key(0, "W"): (8, 12)}
    assert model.SerializeToString(deterministic=True) == before


def test_measured_shapes_need_a_run() -> None:
    with pytest.raises(RunError):
        measured_shapes(MODEL, HERE, ONE, {"x": normal(5, 9)}, {"h"})


class Clockwork:
    """A session whose runs take a known time."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        self.clock, self.seconds, self.order = clock, seconds, 0

    def run(self, feeds: object) -> None:
        self.clock[0] += self.seconds


@pytest.mark.parametrize(("budget", "runs"), [(0.0, 5), (3.0, 10), (1e9, 200)])
def test_latency(budget: float, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    slow, fast = Clockwork(clock, 0.2), Clockwork(clock, 0.1)
    before, after = measure(slow, fast, {}, seconds=budget)  # type: ignore[arg-type]
    assert before.median_ms == pytest.approx(200)
    assert after.median_ms == pytest.approx(100)
    assert before.runs == after.runs == runs
    assert latency._WARM_UP > 0
