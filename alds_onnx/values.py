"""Frozen values: the decisions and measurements of one run, and the enums that they hold."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from enum import Enum

from alds_onnx.cuts import Cut, CutError
from alds_onnx.evidence import Evidence
from alds_onnx.results import LimitResult, Score, Verification
from alds_onnx.runtimes import Preset


class Decision(str, Enum):
    """The decision about a layer."""

    DECOMPOSE = "decompose"
    KEEP = "keep"
    SKIP = "skip"


class SearchMethod(str, Enum):
    """The method that chooses the slices and ranks of all layers."""

    EXACT = "exact"
    ITERATIVE = "iterative"


class Objective(str, Enum):
    """The error that the search minimises."""

    MAX_RELATIVE_ERROR = "max-relative-error"
    SUM_OUTPUT_ERROR = "sum-output-error"
    MAX_OUTPUT_ERROR = "max-output-error"


class BudgetKind(str, Enum):
    """The cost that a budget bounds.

    Attributes
    ----------
    unit
        What is counted, in the plural.
    option
        The option of the command that asks for such a budget.
    """

    unit: str
    option: str

    def __new__(cls, value: str, unit: str = "", option: str = "") -> BudgetKind:
        """A member whose value is a plain string."""
        member = str.__new__(cls, value)
        member._value_, member.unit, member.option = value, unit, option
        return member

    PARAMETERS = "parameters", "parameters", "--cr"
    MACS = "macs", "multiply-accumulates", "--cr-macs"
    LATENCY = "latency", "nanoseconds of a run", "--latency-ratio"


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """An upper bound on a cost of the whole model.

    Attributes
    ----------
    before
        The cost of the original: its floating-point parameters, the known multiply-accumulates of
        one run, or the nanoseconds of one run.
    removed
        The fraction to remove, in (0, 1).
    """

    kind: BudgetKind = BudgetKind.PARAMETERS
    before: int
    removed: float

    @property
    def allowed(self) -> int:
        """The largest count whose reported removed fraction is at least `removed`.

        In exact arithmetic this is floor((1 - removed)·before). In floating point that formula may
        be off by one (0.9 of 10 leaves 0.99...), so the reported fraction itself decides.
        """
        counts = range(1, self.before + 1)
        return bisect_left(counts, True, key=lambda n: 1 - n / self.before < self.removed)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """The decision for one node that holds parameters; a row of the plan.

    Attributes
    ----------
    name
        The node's name, or its first output's where that is empty or not unique.
    op, weight, shape
        The operator, the name of the weight tensor that the node reads, and its ONNX shape.
    decision, reason
        The decision, and why a layer is kept or skipped.
    cut, error
        The cut and its errors; None where the layer is not decomposed.
    parameters_before, parameters_after
        Numbers of entries of the weight and of its factors. Rows that share a weight give the same
        numbers. Of an operator that cannot be decomposed, those of all its larger constants.
    counted_by
        The name of the row that counts the same parameters, "" if it is this one.
    macs_before, macs_after
        Multiply-accumulates of one run; None where the shapes are not known.
    local_error
        Relative error of the layer's output on calibration data, with the layers upstream already
        compressed; None without such data.
    output_error
        Relative error of the model's outputs if only this layer is cut, estimated from probes on
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
    counted_by: str = ""
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
        None if the plan was written by hand.
    constraints
        Further budgets that the plan keeps.
    layers
        One row for each node whose operator can be decomposed, and for each other one with a
        constant of more than 64 numbers, in graph order.
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
    def other_parameters(self) -> int:
        """Parameters of the model that no row counts: small constants, and biases of layers."""
        counted = sum(row.parameters_before for row in self.layers if not row.counted_by)
        return max(0, self.parameters - counted)

    @property
    def max_relative_error(self) -> float:
        """Largest relative error over the decomposed layers."""
        return max((row.error.relative for row in self.layers if row.error), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The results of a run.

    Attributes
    ----------
    verification
        The checks with onnxruntime; None for a dry run.
    macs_before, macs_after
        Multiply-accumulates of the nodes that have a row and whose shapes are known.
    bytes_before, bytes_after
        Sizes of the models, external data included.
    seconds
        Wall time of each step, in order.
    scores
        Scores of the task; empty without an evaluation, and for a dry run.
    limit_result
        The limit that decided how much is removed; None if a ratio or a plan decided.
    preset, unaligned
        The runtime that the ranks were chosen for (None if a plan was applied), and the names of
        the layers whose ranks are slower there because the budget requires them.
    timed
        Whether the choice rests on times measured on this machine. If so, it may differ from run to
        run.
    evidence
        The data behind the choice, for plots; None if the report was made without a run.
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
    limit_result: LimitResult | None = None
    preset: Preset | None = None
    unaligned: tuple[str, ...] = ()
    timed: bool = False
    evidence: Evidence | None = field(default=None, repr=False)
