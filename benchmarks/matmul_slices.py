"""How fast onnxruntime runs Y = X W cut into k > 1 slices, built in four ways.

What: a dense MatMul X (m, c) times W (c, f), and decompositions of it that keep half of its
parameters. The decoder is one MatMul (or Gemm); the ways differ in the encoder, which multiplies
each of the k slices of X with a matrix of its own.

    k=1         MatMul, MatMul: one slice at the same parameters, to see what slices cost
    batched     Reshape, Transpose, batched MatMul, Transpose, Reshape: what the package writes
    split       Split, k MatMuls, Concat
    conv        Reshape (m, c, 1, 1), grouped 1x1 Conv, Reshape
    transposed  Transpose, Reshape (1, c, 1, m), grouped 1x1 Conv, Reshape, Gemm with transA

Why: alds_onnx/graph/patterns.py writes one of them, whatever the size. This is the measurement
behind that choice; run it again when onnxruntime changes.

How: dense, k=1 and batched come from the package's own rewrite, the others are built here from the
same factors, and all that have the same factors must give the same output. The sessions take turns
of a few milliseconds, because another session's threads spin for a while after a run; what is
printed is the fastest run of each, over the fastest run of the dense MatMul.
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

from alds_onnx.decompose.folding import compose
from alds_onnx.evaluate.sessions import Execution, Session
from alds_onnx.graph.layers import Layer, find_layers
from alds_onnx.graph.rewrite import Replacement, rewrite
from alds_onnx.graph.scopes import ModelIndex
from alds_onnx.graph.shapes import infer, known_ranks
from alds_onnx.values import Factors, LayerShape

_SIZES = ((1, 768, 768), (8, 768, 768), (128, 768, 3072), (128, 3072, 768), (512, 120, 360))
_SLICES = (2, 4, 8, 24)
_WAYS = ("batched", "split", "conv", "transposed")
_COLUMNS = ("k=1", *_WAYS)

_KEPT = 0.5
_TURN_SECONDS = 0.005
_FEWEST_TURNS = 5
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
    """The fastest run of each model of a case, in seconds."""

    case: Case
    seconds: Mapping[str, float]

    def over_dense(self, name: str) -> float:
        """Time over that of the dense MatMul."""
        return self.seconds[name] / self.seconds["dense"]

    def over_fastest(self, way: str) -> float:
        """Time over that of the fastest way to build the slices."""
        return self.seconds[way] / min(self.seconds[other] for other in _WAYS)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    print(f"onnxruntime {ort.__version__}, float32, CPU; times over the dense MatMul's")
    rows = []
    for threads in options.threads:
        print(f"\n{_header(threads)}", flush=True)
        for (m, c, f), k in product(_SIZES, _SLICES):
            rows.append(run(Case(m=m, c=c, f=f, num_slices=k, threads=threads), options.seconds))
            print(_line(rows[-1]), flush=True)
    print(f"\n{summary(rows)}")
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
        default=3.0,
        metavar="S",
        help="how long to measure each of the 20 cases per number of threads; longer is steadier "
        "on a busy machine (default: 3)",
    )
    return parser


def run(case: Case, seconds: float) -> Row:
    """Build all models of a case, check that they agree, and time them."""
    generator = np.random.default_rng(0)
    models = build(case, generator)
    execution = Execution(threads=case.threads)
    sessions = {name: Session(m, Path(), execution) for name, m in models.items()}
    x = generator.standard_normal((case.m, case.c)).astype(np.float32)
    outputs = {way: sessions[way].run({"x": x})[0] for way in _WAYS}
    _check_same(outputs, case)
    return Row(case=case, seconds=fastest(sessions, x, seconds))


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
    """What the package writes for these factors."""
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


def fastest(sessions: Mapping[str, Session], x: Array, seconds: float) -> dict[str, float]:
    """Time the sessions in turns; the fastest run of each, in seconds."""
    best = dict.fromkeys(sessions, float("inf"))
    turns, end = 0, time.perf_counter() + seconds
    while turns < _FEWEST_TURNS or time.perf_counter() < end:
        for name, session in sessions.items():
            best[name] = min(best[name], _turn(session, x))
        turns += 1
    return best


def _turn(session: Session, x: Array) -> float:
    """The fastest of the runs that fit into a turn; at least two runs."""
    best, end, runs = float("inf"), time.perf_counter() + _TURN_SECONDS, 0
    while runs < 2 or time.perf_counter() < end:
        start = time.perf_counter()
        session.run({"x": x})
        best = min(best, time.perf_counter() - start)
        runs += 1
    return best


def _header(threads: int) -> str:
    title = f"{threads} thread" + "s" * (threads > 1)
    names = "".join(f"{name:>12}" for name in _COLUMNS)
    return f"{title}\n{'(m, c, f)':17}{'k':>4}{'j':>5}{'dense ms':>10}{names}"


def _line(row: Row) -> str:
    case = row.case
    size = f"({case.m}, {case.c}, {case.f})"
    ratios = "".join(f"{row.over_dense(name):12.2f}" for name in _COLUMNS)
    milliseconds = 1e3 * row.seconds["dense"]
    return f"{size:17}{case.num_slices:4}{case.rank:5}{milliseconds:10.3f}{ratios}"


def summary(rows: Sequence[Row]) -> str:
    """For each way its time over the fastest way's: the worst case, and on average."""
    lines = [
        f"time over the fastest of the four ways, {len(rows)} cases",
        f"{'':12}{'worst':>7}{'mean':>7}{'<= 1.1':>8}   worst at",
    ]
    for way in _WAYS:
        ratios = [row.over_fastest(way) for row in rows]
        worst = rows[int(np.argmax(ratios))].case
        mean = float(np.exp(np.mean(np.log(ratios))))
        near = sum(ratio <= 1.1 for ratio in ratios)
        where = f"({worst.m}, {worst.c}, {worst.f}), k {worst.num_slices}, threads {worst.threads}"
        lines.append(f"{way:12}{max(ratios):7.2f}{mean:7.2f}{near:8}   {where}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
