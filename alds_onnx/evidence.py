"""Frozen values: the data on which a choice of ranks rests, reduced for plots."""

from __future__ import annotations

from dataclasses import dataclass

from alds_onnx.runtimes import Runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinCurve:
    """Some points of the error curve of one weight at a fixed number of slices.

    Attributes
    ----------
    parameters_per_rank
        Number of factor entries for each unit of rank.
    ranks, errors
        Ascending ranks, from 0 to the last one of the curve, and the relative error at each.
    """

    num_slices: int
    parameters_per_rank: int
    ranks: tuple[int, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """The result of probing a weight: the relative errors of the layer and of the outputs."""

    local: float
    output: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightEvidence:
    """The data about one weight, and the names of the layers that read it.

    The error curves are those at one slice and at the chosen number of slices, ascending in k. The
    probes are in ascending order; there are none without calibration data.
    """

    layers: tuple[str, ...]
    curves: tuple[ThinCurve, ...]
    probes: tuple[Damage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TradePoint:
    """One point of a trade-off: the fraction removed, and the objective there."""

    removed: float
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeOff:
    """The smallest objective for each removed fraction, as predicted by the search.

    Only slices and ranks of the runtime are allowed; `NONE` allows all. The points ascend in the
    removed fraction. Each is an optimum for its number of parameters.
    """

    runtime: Runtime
    points: tuple[TradePoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The data about the whole model.

    Attributes
    ----------
    on_data
        Whether errors are those of layer outputs on calibration data instead of weights.
    trade_offs
        Trade-offs of the plan's objective: for the runtime, if there is one, and for all slices and
        ranks. Empty if a plan was applied, because then nothing is searched.
    price
        The plan's objective divided by the smallest one with all slices and ranks, at the same
        number of parameters; None if the search had all of them, or if there was no search.
    """

    on_data: bool
    weights: tuple[WeightEvidence, ...]
    trade_offs: tuple[TradeOff, ...]
    price: float | None = None
