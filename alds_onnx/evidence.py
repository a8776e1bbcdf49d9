"""What a run knew when it chose, thinned to plain numbers for pictures."""

from __future__ import annotations

from dataclasses import dataclass

from alds_onnx.runtimes import Runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class ThinCurve:
    """Some points of the error curve of one weight at a fixed number of slices.

    Attributes
    ----------
    num_slices
        k.
    parameters_per_rank
        Entries that each unit of rank costs.
    ranks, errors
        Ascending ranks, from 0 to the last one of the curve, and the relative error that each
        leaves.
    """

    num_slices: int
    parameters_per_rank: int
    ranks: tuple[int, ...]
    errors: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """What the probe of a weight found: both relative errors, of the layer and of the outputs."""

    local: float
    output: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightEvidence:
    """What was known about one weight.

    Attributes
    ----------
    layers
        Names of the layers that read it.
    curves
        Those at one slice and at the number of slices that was chosen, ascending in k.
    probes
        Ascending; empty without calibration data.
    """

    layers: tuple[str, ...]
    curves: tuple[ThinCurve, ...]
    probes: tuple[Damage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TradePoint:
    """One point of a trade-off: the fraction removed and the objective that is left."""

    removed: float
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeOff:
    """The smallest objective for every fraction of the model's parameters, as the search sees it.

    Attributes
    ----------
    runtime
        Whose slices and ranks it rests on; `NONE` is all there are.
    points
        Ascending in what is removed. Each is an optimum for its own number of parameters.
    """

    runtime: Runtime
    points: tuple[TradePoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was known about the whole model.

    Attributes
    ----------
    on_data
        Whether errors are those of layer outputs on calibration data, not of weights.
    weights
        One for each weight that could be decomposed.
    trade_offs
        Of the plan's objective: for the runtime that was asked for, if any, and for all slices and
        ranks. Empty where a plan was applied: nothing was searched.
    price
        The plan's objective over the smallest with all slices and ranks, at the same number of
        parameters; None where the search had them all, or there was none.
    """

    on_data: bool
    weights: tuple[WeightEvidence, ...]
    trade_offs: tuple[TradeOff, ...]
    price: float | None = None
