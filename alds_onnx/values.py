"""What was decided and measured in one run: frozen values, and the closed choices they hold."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from enum import Enum

from alds_onnx.cuts import Cut, CutError
from alds_onnx.evidence import Evidence
from alds_onnx.runtimes import Preset
from alds_onnx.targets import Score, Target


class Decision(str, Enum):
    """What is done with a layer."""

    DECOMPOSE = "decompose"
    KEEP = "keep"
    SKIP = "skip"


class SearchMethod(str, Enum):
    """How the slices and ranks of all layers are chosen."""

    EXACT = "exact"
    ITERATIVE = "iterative"


class Objective(str, Enum):
    """What the choice of ranks makes small."""

    MAX_RELATIVE_ERROR = "max-relative-error"
    SUM_OUTPUT_ERROR = "sum-output-error"
    MAX_OUTPUT_ERROR = "max-output-error"


class BudgetKind(str, Enum):
    """What a budget counts."""

    PARAMETERS = "parameters"
    MACS = "macs"
    LATENCY = "latency"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How much of something the whole model may keep.

    Attributes
    ----------
    kind
        What is counted.
    before
        Floating-point parameters of the whole model; multiply-accumulates of one run, as far as
        they are known; or nanoseconds of one run.
    removed
        The fraction to remove, in (0, 1).
    """

    kind: BudgetKind = BudgetKind.PARAMETERS
    before: int
    removed: float

    @property
    def limit(self) -> int:
        """Most that may be left so that `removed` or more is reported removed.

        In exact numbers floor((1 - removed)·before). In floating point that is off by one either
        way (0.9 of 10 leaves 0.99...), so the reported fraction itself decides.
        """
        counts = range(1, self.before + 1)
        return bisect_left(counts, True, key=lambda n: 1 - n / self.before < self.removed)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """What was decided for one node whose operator can be decomposed; a row of the plan.

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
    op: str
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
    constraints
        Further budgets that were kept.
    layers
        One row for each node whose operator can be decomposed, in graph order.
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
    constraints: tuple[Budget, ...] = ()
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
    times_ms
        Each of them, in the order in which they were taken.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    times_ms: tuple[float, ...] = field(default=(), repr=False)


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
        Multiply-accumulates of the nodes that have a row and whose shapes are known.
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
    timed
        Whether the choice rests on times measured on this machine: it may differ from run to run.
    evidence
        What the choice rested on, for pictures; None where a report was made without a run.
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
    timed: bool = False
    evidence: Evidence | None = field(default=None, repr=False)
