"""Frozen values that pass between the steps, and the closed choices they are made of."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from enum import Enum
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from alds_onnx.runtimes import Preset
from alds_onnx.targets import Score, Target

FloatArray = npt.NDArray[np.float64]


class Op(str, Enum):
    """An ONNX operator with a weight that can be decomposed."""

    CONV = "Conv"
    GEMM = "Gemm"
    MATMUL = "MatMul"


class Decision(str, Enum):
    """What is done with a layer."""

    DECOMPOSE = "decompose"
    KEEP = "keep"
    SKIP = "skip"


class Scheme(str, Enum):
    """How a weight is folded to a matrix; `encode` is the paper's fold (f, c·kh·kw)."""

    ENCODE = "encode"


class SearchMethod(str, Enum):
    """How the slices and ranks of all layers are chosen."""

    EXACT = "exact"
    ITERATIVE = "iterative"


class Objective(str, Enum):
    """What the choice of ranks makes small."""

    MAX_RELATIVE_ERROR = "max-relative-error"
    SUM_OUTPUT_ERROR = "sum-output-error"
    MAX_OUTPUT_ERROR = "max-output-error"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """The sizes of a layer's weight, folded to a matrix of shape (f, c·kh·kw).

    Attributes
    ----------
    out_features
        f, at least 0.
    in_channels
        c, at least 0; slices are cut along it.
    kernel
        (kh, kw) or as many axes as the operator has; () for Gemm and MatMul.
    """

    out_features: int
    in_channels: int
    kernel: tuple[int, ...] = ()

    @property
    def kernel_size(self) -> int:
        """kh·kw."""
        return prod(self.kernel)

    @property
    def num_columns(self) -> int:
        """c·kh·kw, the columns of the folded matrix."""
        return self.in_channels * self.kernel_size

    @property
    def num_parameters(self) -> int:
        """Entries of the dense weight."""
        return self.out_features * self.num_columns

    def parameters_per_rank(self, num_slices: int) -> int:
        """Entries that each unit of rank costs: k·f (decoder) + c·kh·kw (encoder).

        Source: Liebenwein et al. 2021, section 2.2.
        """
        return num_slices * self.out_features + self.num_columns

    def max_rank(self, num_slices: int) -> int:
        """Largest rank j whose factors are smaller than the dense weight (0: there is none)."""
        per_rank = self.parameters_per_rank(num_slices)
        return max(0, (self.num_parameters - 1) // per_rank) if per_rank else 0

    def slice_counts(self) -> tuple[int, ...]:
        """Every k that divides c and leaves a rank that saves parameters, ascending."""
        c = self.in_channels
        divisors = (k for k in range(1, c + 1) if c % k == 0)
        return tuple(k for k in divisors if self.max_rank(k) > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """How one weight is decomposed: k slices, each of rank j."""

    num_slices: int
    rank: int
    scheme: Scheme = Scheme.ENCODE

    def num_parameters(self, shape: LayerShape) -> int:
        """Entries of both factors together."""
        return self.rank * shape.parameters_per_rank(self.num_slices)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ErrorCurve:
    """The relative error of one layer at a fixed number of slices.

    Attributes
    ----------
    num_slices
        k.
    relative_error
        Shape (min(f, c/k·kh·kw) + 1,), read-only. `relative_error[rank]` is the error after
        keeping `rank`: max over the slices of sigma_{rank+1} / ||W||_2 (ibid., section 2.3).
        Falls with the rank; the last entry is 0.
    """

    num_slices: int
    relative_error: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spectra:
    """The error curves of one weight for all numbers of slices.

    Attributes
    ----------
    shape
        Sizes of the folded weight.
    norm
        ||W||_2, the largest singular value of the whole weight.
    curves
        One curve for each k, ascending in k; never empty.
    """

    shape: LayerShape
    norm: float
    curves: tuple[ErrorCurve, ...]

    def curve(self, num_slices: int) -> ErrorCurve:
        """Give the curve at k slices.

        Raises
        ------
        KeyError
            If there is none.
        """
        for curve in self.curves:
            if curve.num_slices == num_slices:
                return curve
        raise KeyError(num_slices)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Factors:
    """A decomposed weight: slice i of W is about `U[i] @ V[i]`.

    In float64 while they are computed, then in the type in which the model stores them.

    Attributes
    ----------
    shape
        Sizes of the folded weight.
    U
        Decoder, shape (k, f, j), read-only.
    V
        Encoder, shape (k, j, c/k·kh·kw), read-only.
    """

    shape: LayerShape
    U: npt.NDArray[Any]
    V: npt.NDArray[Any]

    @property
    def cut(self) -> Cut:
        """The number of slices and the rank that these factors have."""
        return Cut(num_slices=self.U.shape[0], rank=self.U.shape[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class CutError:
    """Three names for the error of a cut, all relative to ||W||_2 (ibid., Theorem 1).

    Attributes
    ----------
    relative
        max over the slices of sigma_{i,j+1} / sigma_1: what the search minimises.
    spectral
        The true ||W - Ŵ||_2 / ||W||_2; lies between the other two. NaN where a plan that was read
        does not say.
    bound
        sqrt(k) times `relative`: the bound of Theorem 1. NaN as above.
    """

    relative: float
    spectral: float
    bound: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How many parameters the whole model may keep.

    Attributes
    ----------
    before
        Floating-point parameters of the whole model.
    removed
        The fraction to remove, in (0, 1).
    """

    before: int
    removed: float

    @property
    def limit(self) -> int:
        """Most parameters that may be left so that `removed` or more of them are reported removed.

        In exact numbers floor((1 - removed)·before). In floating point that is off by one either
        way (0.9 of 10 leaves 0.99...), so the reported fraction itself decides.
        """
        counts = range(1, self.before + 1)
        return bisect_left(counts, True, key=lambda n: 1 - n / self.before < self.removed)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """What was decided for one Conv, Gemm or MatMul node; a row of the plan.

    Attributes
    ----------
    name
        The node's name, or its first output's where that is empty or not unique.
    op, weight, shape
        Operator, name of the weight tensor as the node reads it, and its ONNX shape.
    decision, reason
        `reason` says why a layer is kept or skipped.
    cut
        Only where the decision is to decompose.
    error
        Errors of the cut; None where the layer is not decomposed.
    parameters_before, parameters_after
        Entries of the weight and of its factors. Rows that share a weight all give the same.
    macs_before, macs_after
        Multiply-accumulates of one run; None where the shapes are not known.
    local_error
        Relative error of the layer's output on calibration data, given what the layers before it
        have become; None without such data.
    output_error
        Relative error of the model's outputs that this cut alone causes, estimated from probes on
        calibration data; None without such data.
    """

    name: str
    op: Op
    weight: str
    shape: tuple[int, ...]
    decision: Decision
    reason: str = ""
    cut: Cut | None = None
    error: CutError | None = None
    parameters_before: int = 0
    parameters_after: int = 0
    macs_before: int | None = None
    macs_after: int | None = None
    local_error: float | None = None
    output_error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All decisions for one model; DESIGN: plan JSON, schema 1.

    Attributes
    ----------
    file, sha256, parameters
        The model that the plan was made for. An empty `sha256` fits any model whose layers match.
    objective, search, seed
        How the ranks were chosen.
    budget
        None where the plan was written by hand.
    layers
        One row for each Conv, Gemm and MatMul, in graph order.
    parameters_after
        Floating-point parameters of the compressed model.
    """

    file: str
    sha256: str
    parameters: int
    objective: Objective = Objective.MAX_RELATIVE_ERROR
    search: SearchMethod
    seed: int
    budget: Budget | None
    layers: tuple[LayerPlan, ...]
    parameters_after: int

    @property
    def removed(self) -> float:
        """Fraction of the parameters that is removed."""
        return 1 - self.parameters_after / self.parameters if self.parameters else 0.0

    @property
    def max_relative_error(self) -> float:
        """Largest relative error over the decomposed layers."""
        return max((row.error.relative for row in self.layers if row.error), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFidelity:
    """How far one output of the compressed model is from the original's.

    Attributes
    ----------
    name
        Name of the graph output.
    relative_l2
        ||y - ŷ||_2 / ||y||_2 over all samples.
    max_abs
        Largest absolute difference.
    cosine
        Cosine of the angle between y and ŷ.
    sqnr_db
        Signal to noise ratio, 10·log10(||y||² / ||y - ŷ||²), in dB.
    top1_agreement
        Fraction of rows whose largest entry is at the same place; None where rows are not scores.
    note
        Why an output could not be compared ("" if it could).
    """

    name: str
    relative_l2: float
    max_abs: float
    cosine: float
    sqnr_db: float
    top1_agreement: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Time of one run, measured in turns with the other model.

    Attributes
    ----------
    median_ms, low_ms, high_ms
        Median and the quartiles around it, in milliseconds.
    runs
        How many runs were counted.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int


class Status(str, Enum):
    """How a check ended."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_VALIDATED = "not validated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What onnxruntime said about the compressed model.

    Attributes
    ----------
    status
        Whether the rewrite is exact: the written model equals the original with W replaced by Ŵ.
    reason
        Why it could not be validated, or what failed.
    difference, tolerance
        Largest relative L2 difference over the outputs between the two, and what was allowed.
    fidelity
        Compressed against original, output by output.
    samples, random_inputs
        What it was measured on.
    latency_before, latency_after
        None where latency was not measured.
    threads, input_shapes
        Threads of onnxruntime and the shapes of one run's inputs.
    """

    status: Status
    reason: str = ""
    difference: float | None = None
    tolerance: float | None = None
    fidelity: tuple[OutputFidelity, ...] = ()
    samples: int = 0
    random_inputs: bool = True
    latency_before: Latency | None = None
    latency_after: Latency | None = None
    threads: int = 1
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def latency_ratio(self) -> float | None:
        """Time of the compressed model over the time of the original."""
        if self.latency_before is None or self.latency_after is None:
            return None
        return self.latency_after.median_ms / self.latency_before.median_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything that is known after a run.

    Attributes
    ----------
    plan
        The decisions, row by row.
    verification
        The checks by onnxruntime; None for a dry run.
    macs_before, macs_after
        Multiply-accumulates of all Conv, Gemm and MatMul nodes whose shapes are known.
    bytes_before, bytes_after
        Sizes of the models, external data included.
    seconds
        Wall time of each step, in order.
    warnings
        What the user should know.
    scores
        The task's own measures; empty where no labelled data was given, and for a dry run.
    target
        The limit that decided how much is removed; None where a ratio or a plan did.
    preset, unaligned
        The runtime that ranks were chosen for, None where a plan was applied; and the layers whose
        ranks are less fast there, because the budget asked for them.
    """

    plan: Plan
    verification: Verification | None
    macs_before: int | None
    macs_after: int | None
    bytes_before: int
    bytes_after: int
    seconds: tuple[tuple[str, float], ...] = ()
    warnings: tuple[str, ...] = field(default=())
    scores: tuple[Score, ...] = ()
    target: Target | None = None
    preset: Preset | None = None
    unaligned: tuple[str, ...] = ()


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Mark an array as read-only, so that a frozen value is frozen all the way down."""
    array.setflags(write=False)
    return array
