"""Collecting the data behind the choice of ranks, reduced for plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from alds_onnx.cuts import Cut, ErrorCurve, LayerShape, Scheme
from alds_onnx.evidence import Evidence, ThinCurve, TradeOff, TradePoint, WeightEvidence
from alds_onnx.schemes import scheme_of
from alds_onnx.search.alignment import FREE, Alignment
from alds_onnx.search.choose import Candidates
from alds_onnx.search.tradeoff import smallest_maxima, smallest_sums
from alds_onnx.settings import Settings
from alds_onnx.steps.metrics.base import Metric
from alds_onnx.steps.prepare import Prepared
from alds_onnx.steps.rows import Decomposition
from alds_onnx.steps.survey import Weight
from alds_onnx.values import Objective

# Points of one curve, which is drawn a few hundred pixels wide.
_POINTS = 120


def gather(prepared: Prepared, decompositions: Sequence[Decomposition]) -> Evidence:
    """Collect the data for the plots of the report."""
    metric = prepared.metric
    cuts = {d.weight.name: d.factors.cut for d in decompositions}
    lines = _trade_offs(prepared)
    return Evidence(
        on_data=metric.on_data,
        weights=tuple(
            _weight(weight, metric, cuts.get(weight.name))
            for weight in prepared.survey.weights()
            if weight.name in metric.spectra
        ),
        trade_offs=lines,
        price=_price(lines[-1], cuts, prepared) if len(lines) > 1 and cuts else None,
    )


def _price(free: TradeOff, cuts: Mapping[str, Cut], prepared: Prepared) -> float | None:
    """Divide the objective of the cuts, as the search counts it, by that with all slices and ranks.

    None if the latter is 0.
    """
    metric = prepared.metric
    curves = {name: metric.spectra[name] for name in cuts}
    errors = [
        float(metric.damage(name, np.array([curves[name].relative_error(cut)]))[0])
        for name, cut in cuts.items()
    ]
    error = (sum if _is_summed(prepared.settings) else max)(errors)
    shapes = {name: spectra.shape for name, spectra in curves.items()}
    saved = sum(
        shapes[name].num_parameters - cut.num_parameters(shapes[name]) for name, cut in cuts.items()
    )
    removed, smallest = zip(*((point.removed, point.error) for point in free.points), strict=True)
    least = float(np.interp(saved / prepared.before, removed, smallest))
    return metric.relative(error) / least if least else None


def _is_summed(settings: Settings) -> bool:
    return settings.objective is Objective.SUM_OUTPUT_ERROR


def _weight(weight: Weight, metric: Metric, cut: Cut | None) -> WeightEvidence:
    spectra = metric.spectra[weight.name]
    wanted, scheme = {1, cut.num_slices if cut else 1}, _fold(cut)
    return WeightEvidence(
        layers=tuple(layer.name for layer in weight.layers),
        curves=tuple(
            _thin(spectra.shape, curve, cut)
            for curve in spectra.curves
            if curve.scheme is scheme and curve.num_slices in wanted
        ),
        probes=metric.probes_of(weight.name),
    )


def _fold(cut: Cut | None) -> Scheme:
    """Choose the fold to show, by its scheme: that of the cut's first projection."""
    return scheme_of(cut.scheme.structure.projections(cut)[0].fold) if cut else Scheme.ENCODE


def _thin(shape: LayerShape, curve: ErrorCurve, cut: Cut | None) -> ThinCurve:
    """Keep points of a curve: half of them evenly spaced in rank, half in its logarithm."""
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


def _trade_offs(prepared: Prepared) -> tuple[TradeOff, ...]:
    if prepared.settings.plan is not None or not prepared.metric.spectra:
        return ()
    own = prepared.settings.alignment
    return tuple(_trade_off(prepared, rule) for rule in ([own] if own.is_free else [own, FREE]))


def _trade_off(prepared: Prepared, rule: Alignment) -> TradeOff:
    metric, before = prepared.metric, prepared.before
    candidates = Candidates(spectra=metric.spectra, damage=metric.damage)
    search = smallest_sums if _is_summed(prepared.settings) else smallest_maxima
    parameters, error = search(list(candidates.frontiers(rule).values()))
    dense = sum(spectra.shape.num_parameters for spectra in metric.spectra.values())
    points = [
        TradePoint(removed=(dense - int(n)) / before, error=metric.relative(float(e)))
        for n, e in zip(parameters, error, strict=True)
    ]
    return TradeOff(runtime=rule.preset.runtime, points=tuple(reversed(points)))
