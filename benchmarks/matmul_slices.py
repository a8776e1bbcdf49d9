"""How fast onnxruntime runs Y = X W cut into k > 1 slices, built in four ways.

What: a dense MatMul X (m, c) times W (c, f), and decompositions of it that keep half of its
parameters. The decoder is one MatMul (or Gemm); the ways differ in the encoder, which multiplies
each of the k slices of X with a matrix of its own.

    k=1         MatMul, MatMul: one slice at the same parameters, to see what slices cost
    batched     Reshape, Transpose, batched MatMul, Transpose, Reshape: what the package writes
    split       Split, k MatMuls, Concat
    conv        Reshape (m, c, 1, 1), grouped 1x1 Conv, Reshape
    transposed  Transpose, Reshape (1, c, 1, m), grouped 1x1 Conv, Reshape, Gemm with transA

Why: alds_onnx/graph/operators/product.py writes one of them, whatever the size. This is the
measurement behind that choice; run it again when onnxruntime changes.

How: dense, k=1 and batched come from the package's own rewrite, the others are built here from the
same factors, and all that have the same factors must give the same output. All sessions of
all cases take turns, pass after pass; a turn lasts some milliseconds, because the threads of the
session before spin for a while. Printed is the fastest run of each, over the fastest run of the
dense MatMul. Every other pass is a measurement of its own: a case whose two measurements differ by
more than 5 % is marked with ? and left out of the summary. With several threads this needs cores
that nobody else uses, for a run waits for its slowest thread; if the dense MatMul is not faster
than on one thread, the cores were busy all the time, which no mark tells.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import ModelProto, helper, numpy_helper

from alds_onnx.cuts import Factors, LayerShape
from alds_onnx.evaluate.sessions import Execution, Session
from alds_onnx.graph.find import find_layers
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.rewrite import Replacement, rewrite
from alds_onnx.graph.scopes import ModelIndex
from alds_onnx.graph.shapes import infer, known_ranks

_SIZES = ((1, 768, 768), (8, 768, 768), (128, 768, 3072), (128, 3072, 768), (512, 120, 360))
_SLICES = (2, 4, 8, 24)
_WAYS = ("batched", "split", "conv", "transposed")
_COLUMNS = ("k=1", *_WAYS)

_KEPT = 0.5
_TURN_SECONDS = 0.02
_FEWEST_PASSES = 4
# Two measurements of the fastest run that are further apart say nothing.
_STEADY = 1.05
# float32 sums of at most 3072 products, in another order.
_SAME_OUTPUT = 1e-4

Array = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One size X (m, c), W (c, f), cut into k slices, on a number of threads."""

    m: int
    c: int
    f: int
    num_slices: int
    threads: int

    @property
    def shape(self) -> LayerShape:
        """Sizes of the folded weight."""
        return LayerShape(out_features=self.f, in_channels=self.c)

    @property
    def rank(self) -> int:
        """The rank at which k slices keep half of the parameters, at least 1."""
        return self._affordable(int(_KEPT * self.shape.num_parameters), self.num_slices)

    @property
    def rank_of_one_slice(self) -> int:
        """The rank at which one slice has as many parameters as the k slices have."""
        used = self.rank * self.shape.parameters_per_rank(self.num_slices)
        return self._affordable(used, 1)

    def _affordable(self, parameters: int, num_slices: int) -> int:
        return max(1, parameters // self.shape.parameters_per_rank(num_slices))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The fastest run of each model of a case, in seconds; measured twice.

    Attributes
    ----------
    case
        What was run.
    first, second
        The fastest run in every other pass, and in the passes between.
    """

    case: Case
    first: Mapping[str, float]
    second: Mapping[str, float]

    @property
    def is_steady(self) -> bool:
        """Whether both measurements agree; where they do not, the machine was too busy."""
        ratios = [self.first[name] / self.second[name] for name in self.first]
        return max(ratios) <= _STEADY and min(ratios) >= 1 / _STEADY

    def seconds(self, name: str) -> float:
        """The fastest run of all."""
        return min(self.first[name], self.second[name])

    def over_dense(self, name: str) -> float:
        """Time over that of the dense MatMul."""
        return self.seconds(name) / self.seconds("dense")

    def over_fastest(self, way: str) -> float:
        """Time over that of the fastest way to build the slices."""
        return self.seconds(way) / min(self.seconds(other) for other in _WAYS)


class Bench:
    """The sessions of a case, and the fastest run of each so far."""

    def __init__(self, case: Case, sessions: Mapping[str, Session], x: Array) -> None:
        self._case, self._sessions, self._x = case, sessions, x
        self._best = tuple(dict.fromkeys(sessions, float("inf")) for _ in range(2))

    def take_turns(self, measurement: int) -> None:
        best = self._best[measurement]
        for name, session in self._sessions.items():
            best[name] = min(best[name], _turn(session, self._x))

    def row(self) -> Row:
        first, second = self._best
        return Row(case=self._case, first=first, second=second)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    print(f"onnxruntime {ort.__version__}, float32, CPU; times over the dense MatMul's")
    for threads in options.threads:
        rows = measure(threads, options.seconds)
        print(f"\n{_table(threads, rows)}\n\n{summary(rows)}", flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    description, _, rest = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=[1, 2],
        metavar="N",
        help="numbers of threads to measure with; no more than there are cores (default: 1 2)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=4.0,
        metavar="S",
        help="how long to measure each of the 20 cases, for each number of threads; longer is "
        "steadier on a busy machine (default: 4)",
    )
    return parser


def measure(threads: int, seconds: float) -> list[Row]:
    """Time all cases, pass after pass, so that a busy minute of the machine spoils no case."""
    cases = [
        Case(m=m, c=c, f=f, num_slices=k, threads=threads)
        for (m, c, f), k in product(_SIZES, _SLICES)
    ]
    benches = [set_up(case) for case in cases]
    passes, end = 0, time.perf_counter() + seconds * len(cases)
    while passes < _FEWEST_PASSES or time.perf_counter() < end:
        for bench in benches:
            bench.take_turns(passes % 2)
        passes += 1
    return [bench.row() for bench in benches]


def set_up(case: Case) -> Bench:
    """Build and load all models of a case, and check that they agree."""
    generator = np.random.default_rng(0)
    models = build(case, generator)
    execution = Execution(threads=case.threads)
    sessions = {name: Session(model, Path(), execution) for name, model in models.items()}
    x = generator.standard_normal((case.m, case.c)).astype(np.float32)
    _check_same({way: sessions[way].run({"x": x})[0] for way in _WAYS}, case)
    return Bench(case, sessions, x)


def build(case: Case, generator: np.random.Generator) -> dict[str, ModelProto]:
    """All models of a case, by name."""
    dense = _model(case, "y = MatMul(x, W)", W=generator.standard_normal((case.c, case.f)))
    factors = _random_factors(case, case.num_slices, case.rank, generator)
    one = _random_factors(case, 1, case.rank_of_one_slice, generator)
    return {
        "dense": dense,
        "k=1": _rewritten(dense, one),
        "batched": _rewritten(dense, factors),
        "split": _split(case, factors),
        "conv": _conv(case, factors),
        "transposed": _transposed(case, factors),
    }


def _random_factors(case: Case, k: int, rank: int, generator: np.random.Generator) -> Factors:
    U = generator.standard_normal((k, case.f, rank))
    V = generator.standard_normal((k, rank, case.c // k))
    return Factors(shape=case.shape, U=U, V=V)


def _rewritten(dense: ModelProto, factors: Factors) -> ModelProto:
    """Write the factors as the package does."""
    index = ModelIndex(dense)
    (layer,) = find_layers(index, Path(), known_ranks(index, infer(dense)))
    if not isinstance(layer, Layer):
        raise TypeError(f"the package does not decompose the MatMul: {layer.reason}")
    return rewrite(dense, [Replacement(layers=(layer,), factors=factors)])


def _split(case: Case, factors: Factors) -> ModelProto:
    k = case.num_slices
    parts = ", ".join(f"x{i}" for i in range(k))
    codes = ", ".join(f"z{i}" for i in range(k))
    products = "\n".join(f"z{i} = MatMul(x{i}, V{i})" for i in range(k))
    nodes = f"""
        {parts} = Split <axis = 1> (x)
        {products}
        z = Concat <axis = 1> ({codes})
        y = MatMul(z, U)
    """
    encoders = {f"V{i}": V.T for i, V in enumerate(factors.V)}  # (c/k, j)
    return _model(case, nodes, U=_decoder(factors), **encoders)


def _conv(case: Case, factors: Factors) -> ModelProto:
    nodes = f"""
        shape = Constant <value_ints = [0, {case.c}, 1, 1]> ()
        pixels = Reshape(x, shape)
        code = Conv <group = {case.num_slices}> (pixels, V)
        flat = Constant <value_ints = [0, -1]> ()
        z = Reshape(code, flat)
        y = MatMul(z, U)
    """
    return _model(case, nodes, U=_decoder(factors), V=_kernel(factors))


def _transposed(case: Case, factors: Factors) -> ModelProto:
    width = case.num_slices * case.rank
    nodes = f"""
        columns = Transpose <perm = [1, 0]> (x)
        shape = Constant <value_ints = [1, {case.c}, 1, -1]> ()
        image = Reshape(columns, shape)
        code = Conv <group = {case.num_slices}> (image, V)
        flat = Constant <value_ints = [{width}, -1]> ()
        z = Reshape(code, flat)
        y = Gemm <transA = 1> (z, U)
    """
    return _model(case, nodes, U=_decoder(factors), V=_kernel(factors))


def _decoder(factors: Factors) -> npt.NDArray[np.float64]:
    """Return U as (k·j, f)."""
    return factors.U.transpose(0, 2, 1).reshape(-1, factors.shape.out_features)


def _kernel(factors: Factors) -> npt.NDArray[np.float64]:
    """Return V as the weight of a grouped 1x1 Conv, (k·j, c/k, 1, 1)."""
    k, j, columns = factors.V.shape
    return factors.V.reshape(k * j, columns, 1, 1)


def _model(case: Case, nodes: str, **weights: npt.NDArray[np.float64]) -> ModelProto:
    """Parse nodes in ONNX text, x (m, c) to y (m, f), and add the weights."""
    graph = onnx.parser.parse_graph(
        f"g (float[{case.m}, {case.c}] x) => (float[{case.m}, {case.f}] y) {{ {nodes} }}"
    )
    graph.initializer.extend(
        numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name)
        for name, array in weights.items()
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _check_same(outputs: Mapping[str, Array], case: Case) -> None:
    """Models that do not compute the same have nothing to compare."""
    expected = outputs["batched"]
    for way, output in outputs.items():
        difference = np.linalg.norm(output - expected) / np.linalg.norm(expected)
        if output.shape != expected.shape or not difference <= _SAME_OUTPUT:
            raise AssertionError(f"{case}: {way} differs from batched by {difference:.1e}")


def _turn(session: Session, x: Array) -> float:
    """Run for a turn, at least twice; the fastest run, in seconds."""
    best, end, runs = float("inf"), time.perf_counter() + _TURN_SECONDS, 0
    while runs < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        session.run({"x": x})
        best = min(best, time.perf_counter() - start)
        runs += 1
    return best


def _table(threads: int, rows: Sequence[Row]) -> str:
    title = f"{threads} thread" + "s" * (threads > 1)
    names = "".join(f"{name:>12}" for name in _COLUMNS)
    header = f"{'(m, c, f)':17}{'k':>4}{'j':>5}{'dense ms':>10}{names}"
    return "\n".join([title, header, *(_line(row) for row in rows)])


def _line(row: Row) -> str:
    case = row.case
    size = f"({case.m}, {case.c}, {case.f})"
    ratios = "".join(f"{row.over_dense(name):12.2f}" for name in _COLUMNS)
    milliseconds = 1e3 * row.seconds("dense")
    mark = "" if row.is_steady else "  ?"
    return f"{size:17}{case.num_slices:4}{case.rank:5}{milliseconds:10.3f}{ratios}{mark}"


def summary(rows: Sequence[Row]) -> str:
    """For each way its time over the fastest way's: the worst case, and on average."""
    steady = [row for row in rows if row.is_steady]
    if not steady:
        return "no case was steady: run again on idle cores, or with more --seconds"
    lines = [
        f"over the fastest way, in the {len(steady)} of {len(rows)} cases that were steady",
        f"{'':12}{'worst':>7}{'mean':>7}{'<= 1.1':>8}   worst at",
    ]
    for way in _WAYS:
        ratios = [row.over_fastest(way) for row in steady]
        worst = steady[int(np.argmax(ratios))].case
        mean = float(np.exp(np.mean(np.log(ratios))))
        near = sum(ratio <= 1.1 for ratio in ratios)
        where = f"({worst.m}, {worst.c}, {worst.f}), k {worst.num_slices}"
        lines.append(f"{way:12}{max(ratios):7.2f}{mean:7.2f}{near:8}   {where}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
