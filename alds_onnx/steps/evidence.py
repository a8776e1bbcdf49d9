"""What a choice of ranks rested on, thinned for pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from alds_onnx.calibrate.sensitivity import Sensitivity
from alds_onnx.cuts import Cut, ErrorCurve, LayerShape, Scheme, Spectra
from alds_onnx.evidence import Damage, Evidence, ThinCurve, TradeOff, TradePoint, WeightEvidence
from alds_onnx.runtimes import Runtime
from alds_onnx.schemes import scheme_of
from alds_onnx.search.alignment import FREE, Alignment
from alds_onnx.search.frontier import Frontier, frontier
from alds_onnx.search.tradeoff import smallest_maxima, smallest_sums
from alds_onnx.settings import Settings
from alds_onnx.steps.fitting import by_output
from alds_onnx.steps.rows import Decomposition
from alds_onnx.steps.survey import Survey, Weight
from alds_onnx.values import Objective

# Points of one curve; they are drawn a few hundred pixels wide.
_POINTS = 120


def gather(
    *,
    curves: Mapping[str, Spectra],
    sensitivities: Mapping[str, Sensitivity] | None,
    decompositions: Sequence[Decomposition],
    survey: Survey,
    settings: Settings,
    before: int,
) -> Evidence:
    """Keep what pictures need.

    Parameters
    ----------
    curves
        Error curves by weight.
    sensitivities
        By weight; None without calibration data, empty where a plan was applied.
    decompositions
        The cuts that were chosen.
    survey, settings
        The model, and what was asked for.
    before
        Parameters of the whole model.
    """
    cuts = {d.weight.name: d.factors.cut for d in decompositions}
    known = sensitivities or {}
    lines = _trade_offs(curves, sensitivities, settings, before)
    price = None
    if len(lines) > 1 and cuts:
        price = _price(
            lines[-1],
            cuts,
            curves=curves,
            sensitivities=sensitivities,
            settings=settings,
            before=before,
        )
    return Evidence(
        on_data=sensitivities is not None,
        weights=tuple(
            _weight(weight, curves[weight.name], cuts.get(weight.name), known.get(weight.name))
            for weight in survey.weights()
            if weight.name in curves
        ),
        trade_offs=lines,
        price=price,
    )


def _price(
    free: TradeOff,
    cuts: Mapping[str, Cut],
    *,
    curves: Mapping[str, Spectra],
    sensitivities: Mapping[str, Sensitivity] | None,
    settings: Settings,
    before: int,
) -> float | None:
    """The objective of the cuts, as the search sees it, over that with all slices and ranks.

    None where that would lose nothing.
    """
    errors = [curves[name].relative_error(cut) for name, cut in cuts.items()]
    if sensitivities is not None:
        local = zip(cuts, errors, strict=True)
        errors = [float(sensitivities[name].damage(np.array([e]))[0]) for name, e in local]
    error = (sum if _is_summed(settings) else max)(errors)
    shapes = {name: curves[name].shape for name in cuts}
    saved = sum(
        shapes[name].num_parameters - cut.num_parameters(shapes[name]) for name, cut in cuts.items()
    )
    removed, smallest = zip(*((point.removed, point.error) for point in free.points), strict=True)
    least = float(np.interp(saved / before, removed, smallest))
    if not least:
        return None
    return (error if sensitivities is None else error**0.5) / least


def _is_summed(settings: Settings) -> bool:
    return settings.objective is Objective.SUM_OUTPUT_ERROR


def _weight(
    weight: Weight, spectra: Spectra, cut: Cut | None, sensitivity: Sensitivity | None
) -> WeightEvidence:
    wanted, scheme = {1, cut.num_slices if cut else 1}, _fold(cut)
    probes: tuple[Damage, ...] = ()
    if sensitivity is not None:
        squared = zip(sensitivity.local, sensitivity.output, strict=True)
        probes = tuple(Damage(local=x**0.5, output=y**0.5) for x, y in squared)
    return WeightEvidence(
        layers=tuple(layer.name for layer in weight.layers),
        curves=tuple(
            _thin(spectra.shape, curve, cut)
            for curve in spectra.curves
            if curve.scheme is scheme and curve.num_slices in wanted
        ),
        probes=probes,
    )


def _fold(cut: Cut | None) -> Scheme:
    """The fold to show, by its scheme: that of the cut's first projection."""
    return scheme_of(cut.scheme.structure.projections(cut)[0].fold) if cut else Scheme.ENCODE


def _thin(shape: LayerShape, curve: ErrorCurve, cut: Cut | None) -> ThinCurve:
    """Half of the points evenly over the ranks, half of them over their logarithm."""
    last = len(curve.relative_error) - 1
    sizes = curve.scheme.structure.folds[0].sizes(shape)
    even = np.linspace(0, last, _POINTS // 2).round()
    small = np.geomspace(1, max(last, 1), _POINTS // 2).round()
    chosen = [cut.rank] if cut and cut.num_slices == curve.num_slices else []
    ranks = sorted({int(r) for r in (*even, *small, *chosen) if r <= last})
    return ThinCurve(
        num_slices=curve.num_slices,
        parameters_per_rank=sizes.parameters_per_rank(curve.num_slices),
        ranks=tuple(ranks),
        errors=tuple(float(curve.relative_error[rank]) for rank in ranks),
    )


def _trade_offs(
    curves: Mapping[str, Spectra],
    sensitivities: Mapping[str, Sensitivity] | None,
    settings: Settings,
    before: int,
) -> tuple[TradeOff, ...]:
    if settings.plan is not None or not curves:
        return ()
    rules = [settings.alignment] if settings.alignment.is_free else [settings.alignment, FREE]
    return tuple(_trade_off(curves, sensitivities, settings, before, rule) for rule in rules)


def _trade_off(
    curves: Mapping[str, Spectra],
    sensitivities: Mapping[str, Sensitivity] | None,
    settings: Settings,
    before: int,
    rule: Alignment,
) -> TradeOff:
    frontiers: list[Frontier] = []
    for name, spectra in curves.items():
        found = frontier(name, spectra, rule)
        frontiers.append(found if sensitivities is None else by_output(found, sensitivities[name]))
    search = smallest_sums if _is_summed(settings) else smallest_maxima
    parameters, error = search(frontiers)
    if sensitivities is not None:
        error = np.sqrt(error)  # those of outputs are squared
    dense = sum(spectra.shape.num_parameters for spectra in curves.values())
    points = [
        TradePoint(removed=(dense - int(n)) / before, error=float(e))
        for n, e in zip(parameters, error, strict=True)
    ]
    runtime = settings.alignment.preset.runtime if not rule.is_free else Runtime.NONE
    return TradeOff(runtime=runtime, points=tuple(reversed(points)))
