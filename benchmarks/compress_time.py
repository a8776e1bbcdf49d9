"""How long the two steps take that look at weights: all singular values, and the exact search.

What: spectra of every weight, for every number of slices, fold by fold and for all schemes; then
the global optimum over all schemes, slices and ranks at half of the parameters. Networks:

    resnet50, resnet101   the layers of these networks
    1 M ... 1 G           those of ResNet-50, with wider or narrower channels; from 100 M on with
                          --large, which takes minutes, and 8 GB for 1 G

The weights are random, in memory, in float32: the times do not depend on the numbers in them.

Why: the bars are 15 s for the spectra of ResNet-50 in the paper's fold, 60 s in all folds, 3 s for
the search of ResNet-101 over everything, and 3 times the floor for spectra.

How: layers side by side on as many threads as there are processors (--threads), each with one BLAS
thread, as in the package. Bars in seconds are wall time. Ratios are CPU seconds of all threads over
a floor, since the machine may do other work:

    floor     what the same numbers would take if all of their arithmetic ran as fast as a product
              of two 1024 x 1024 matrices in float64 does on a thread, with all threads at work. A
              Gram matrix (m, m) of n columns counts as m²n, being symmetric, its eigenvalues as
              4/3 m³; only the finest wide and the coarsest narrow Gram matrices count, as all
              others follow from these
    lapack    the same, but eigenvalues as fast as LAPACK finds those of one 1024 x 1024 matrix:
              half of the 4/3 m³ is matrix times vector, which no library does as fast as a product

    python benchmarks/compress_time.py             prints the table
    python benchmarks/compress_time.py --write     writes compress_time.md too
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from alds_onnx.cuts import LayerShape, Scheme, Spectra, distinct
from alds_onnx.decompose.spectra import counts_of_folds, spectra_of_schemes
from alds_onnx.options.run import default_threads
from alds_onnx.search.alignment import FREE
from alds_onnx.search.choose import Candidates, LargestError
from alds_onnx.search.costs import PARAMETERS_ONLY
from alds_onnx.steps.survey import side_by_side

_TABLE = Path(__file__).with_suffix(".md")
_SIZE = 1024
_STAGES = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
_SIZES = {"1 M": 1e6, "10 M": 1e7, "100 M": 1e8, "1 G": 1e9}
# Seconds, and the factor over the floor.
_BARS = {
    ("resnet50", "encode"): 15.0,
    ("resnet50", "all"): 60.0,
}
_SEARCH_BAR = 3.0
_FLOOR_BAR = 3.0
_LEAST_FLOOR = 0.5

Weights = dict[str, tuple[LayerShape, npt.NDArray[np.float32]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Times of one network in some schemes, in seconds.

    Attributes
    ----------
    spectra, search
        Wall time.
    cpu
        Of the spectra, on all threads.
    floor, lapack
        What that could be at best.
    peak
        Bytes of memory in use at most, so far, weights in float32 included.
    """

    network: str
    parameters: int
    schemes: str
    spectra: float
    cpu: float
    floor: float
    lapack: float
    search: float
    peak: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Flops per second of one thread: of matrix products, and of eigenvalues."""

    products: float
    eigenvalues: float


def resnet_shapes(stages: Sequence[int], width: float) -> list[LayerShape]:
    """Convolutions and the classifier of a bottleneck ResNet; `width` multiplies the channels."""

    def channels(count: int) -> int:
        return max(16, 16 * round(count * width / 16))

    shapes = [_conv(channels(64), 3, 7)]
    before = channels(64)
    for stage, blocks in enumerate(stages):
        inner, outer = channels(64 << stage), channels(256 << stage)
        for block in range(blocks):
            shapes += [_conv(inner, before, 1), _conv(inner, inner, 3), _conv(outer, inner, 1)]
            if block == 0:
                shapes.append(_conv(outer, before, 1))
            before = outer
    return [*shapes, LayerShape(out_features=1000, in_channels=before)]


def _conv(f: int, c: int, kernel: int) -> LayerShape:
    return LayerShape(out_features=f, in_channels=c, kernel=(kernel, kernel))


def drawn(shapes: Sequence[LayerShape]) -> Weights:
    """Random weights, by the number of the layer."""
    generator = np.random.default_rng(0)
    return {
        f"{number:03}": (
            shape,
            generator.standard_normal((shape.out_features, shape.num_columns), dtype=np.float32),
        )
        for number, shape in enumerate(shapes)
    }


def counts(shape: LayerShape, schemes: Sequence[Scheme]) -> dict[Scheme, tuple[int, ...]]:
    """All numbers of slices of the schemes that make a difference."""
    return {
        scheme: sliced.slice_counts() if (sliced := scheme.structure.sliced(shape)) else ()
        for scheme in distinct(shape, schemes)
    }


def flops_of(shape: LayerShape, schemes: Sequence[Scheme]) -> tuple[float, float]:
    """Arithmetic of the Gram matrices, and of the eigenvalues, of all folds."""
    folds = counts_of_folds({Scheme.ENCODE: (), **counts(shape, schemes)})
    each = [
        _flops_of_fold(scheme.structure.folds[0].sizes(shape), ks or (1,))
        for scheme, ks in folds.items()
    ]
    return sum(grams for grams, _ in each), sum(values for _, values in each)


def _flops_of_fold(folded: LayerShape, ks: Sequence[int]) -> tuple[float, float]:
    m, n = folded.out_features, folded.num_columns
    grams = 0.0
    narrow = [k for k in ks if n // k < m]
    if len(narrow) < len(ks):
        grams += m * m * n
    if narrow:
        grams += narrow[0] * (n // narrow[0]) ** 2 * m
    return grams, sum(4 / 3 * k * min(m, n // k) ** 3 for k in ks)


def find_rates(threads: int) -> Rates:
    """Measure this machine: the best of some runs of a thread, in CPU time, all at work at once.

    Threads that share a core or its caches are slower side by side, and so are the spectra.
    """
    matrix = np.random.default_rng(0).standard_normal((_SIZE, _SIZE))
    gram, other = matrix @ matrix.T, matrix.copy()

    def best(function: Callable[[], object]) -> float:
        with threadpool_limits(limits=1), ThreadPoolExecutor(threads) as pool:
            each = pool.map(lambda _: min(_cpu_seconds(function) for _ in range(9)), range(threads))
            return float(np.mean(list(each)))

    return Rates(
        products=2 * _SIZE**3 / best(lambda: matrix @ other),
        eigenvalues=4 / 3 * _SIZE**3 / best(lambda: np.linalg.eigvalsh(gram)),
    )


def _cpu_seconds(function: Callable[[], object]) -> float:
    start = time.thread_time()
    function()
    return time.thread_time() - start


def timed(function: Callable[[], object]) -> tuple[object, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def find_spectra(
    weights: Weights, schemes: Sequence[Scheme], threads: int
) -> tuple[dict[str, Spectra], float, float]:
    """Error curves of all weights, and the seconds they took: wall time and CPU."""

    def compute(name: str) -> Spectra:
        shape, weight = weights[name]
        matrix = weight.reshape(len(weight), -1).astype(np.float64)
        return spectra_of_schemes(matrix, shape, counts(shape, schemes))

    start, cpu = time.perf_counter(), time.process_time()
    found = side_by_side(
        compute,
        list(weights),
        threads,
        lambda done, total: None,
        size=lambda name: weights[name][0].num_parameters,
    )
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return dict(zip(weights, found, strict=True)), seconds, cpu


def measure(network: str, weights: Weights, names: str, rates: Rates, threads: int) -> Row:
    """Time one network in some schemes."""
    schemes = tuple(Scheme) if names == "all" else (Scheme(names),)
    curves, seconds, cpu = find_spectra(weights, schemes, threads)
    parameters = sum(shape.num_parameters for shape, _ in weights.values())
    candidates = Candidates(spectra=curves)
    _, search = timed(
        lambda: LargestError().search(candidates, FREE, PARAMETERS_ONLY, parameters // 2)
    )
    flops = [flops_of(shape, schemes) for shape, _ in weights.values()]
    grams, values = (sum(column) for column in zip(*flops, strict=True))
    return Row(
        network=network,
        parameters=parameters,
        schemes=names,
        spectra=seconds,
        cpu=cpu,
        floor=(grams + values) / rates.products,
        lapack=grams / rates.products + values / rates.eigenvalues,
        search=search,
        peak=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )


def networks(*, large: bool) -> Mapping[str, tuple[Sequence[int], float, tuple[str, ...]]]:
    """Stages, width and schemes to look at, by name."""
    found: dict[str, tuple[Sequence[int], float, tuple[str, ...]]] = {}
    for name, size in _SIZES.items():
        if size < 1e8 or large:
            width = float(np.sqrt(size / 25.5e6))
            found[name] = (_STAGES["resnet50"], width, ("encode",))
    found["resnet50"] = (_STAGES["resnet50"], 1.0, ("encode", "decode", "split-height", "all"))
    found["resnet101"] = (_STAGES["resnet101"], 1.0, ("all",))
    # In the order of their sizes: the peak of memory is that of all until then.
    return dict(sorted(found.items(), key=lambda item: size_of(*item[1][:2])))


def size_of(stages: Sequence[int], width: float) -> int:
    """Entries of all weights of a network."""
    return sum(shape.num_parameters for shape in resnet_shapes(stages, width))


def header() -> str:
    return (
        f"{'network':10} {'parameters':>13} {'schemes':12} {'spectra s':>10} {'CPU s':>8}"
        f" {'floor':>7} {'ratio':>6} {'lapack':>7} {'ratio':>6} {'search s':>9} {'peak GiB':>9}"
    )


def line(row: Row) -> str:
    return (
        f"{row.network:10} {row.parameters:13,} {row.schemes:12} {row.spectra:10.2f} {row.cpu:8.2f}"
        f" {row.floor:7.2f} {row.cpu / row.floor:6.2f} {row.lapack:7.2f}"
        f" {row.cpu / row.lapack:6.2f} {row.search:9.2f}"
        f" {row.peak / 2**30:9.2f}"
    )


def judge(rows: Sequence[Row]) -> tuple[list[str], bool]:
    """Hold the times against the bars: a line for each, and whether all hold."""
    lines, good = [], True
    for row in rows:
        limit = _BARS.get((row.network, row.schemes))
        if limit is not None:
            lines.append(_verdict(f"spectra of {row.network}, {row.schemes}", row.spectra, limit))
            good &= row.spectra <= limit
        if (row.network, row.schemes) == ("resnet101", "all"):
            lines.append(_verdict("search of resnet101, all", row.search, _SEARCH_BAR))
            good &= row.search <= _SEARCH_BAR
    # Small networks are overhead: the floor is asked of those that take time.
    large = [row for row in rows if row.floor > _LEAST_FLOOR]
    for name, ratios in (
        ("the floor", [row.cpu / row.floor for row in large]),
        ("LAPACK's", [row.cpu / row.lapack for row in large]),
    ):
        worst = max(ratios, default=0.0)
        verdict = "holds " if worst <= _FLOOR_BAR else "MISSES"
        lines.append(f"{verdict} spectra over {name}: {worst:.2f} x, at most {_FLOOR_BAR:g}")
        good &= worst <= _FLOOR_BAR
    return lines, good


def _verdict(what: str, seconds: float, limit: float) -> str:
    return (
        f"{'holds ' if seconds <= limit else 'MISSES'} {what}: {seconds:.2f} s, at most {limit:g}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--only", action="append", help="a network (repeatable); default: all")
    parser.add_argument("--large", action="store_true", help="100 M and 1 G parameters too")
    parser.add_argument("--write", action="store_true", help=f"write {_TABLE.name}")
    options = parser.parse_args()
    rates = find_rates(options.threads)
    printed = [
        f"{options.threads} threads, GFLOP/s of each: {rates.products / 1e9:.1f} in products, "
        f"{rates.eigenvalues / 1e9:.1f} in eigenvalues; NumPy {np.__version__}, "
        f"{platform.machine()}, {os.cpu_count()} processors",
        "",
        header(),
    ]
    print("\n".join(printed), flush=True)
    rows = []
    for network, (stages, width, schemes) in networks(large=options.large).items():
        if options.only and network not in options.only:
            continue
        weights = drawn(resnet_shapes(stages, width))
        for names in schemes:
            rows.append(measure(network, weights, names, rates, options.threads))
            printed.append(line(rows[-1]))
            print(printed[-1], flush=True)
    verdicts, good = judge(rows)
    printed += ["", *verdicts]
    print("\n".join(["", *verdicts]))
    if options.write:
        _TABLE.write_text(_markdown(printed), encoding="utf-8")
    return 0 if good else 1


def _markdown(printed: Sequence[str]) -> str:
    command = shlex.join(["python", "benchmarks/compress_time.py", *sys.argv[1:]])
    head = f"# Time to compress\n\nPrinted by `{command}`."
    return "\n".join([head, "", "```", *printed, "```", ""])


if __name__ == "__main__":
    sys.exit(main())
