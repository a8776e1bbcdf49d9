"""compress(): the steps in order, each a call."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import numpy as np
from onnx import ModelProto
from threadpoolctl import threadpool_limits

from alds_onnx.calibrate.reader import model_inputs, read_feeds
from alds_onnx.decompose.factorize import cut_error, factorize
from alds_onnx.decompose.spectra import spectra
from alds_onnx.errors import BudgetError, PlanError, UsageError, VerificationError
from alds_onnx.evaluate.samples import Samples, measured_shapes, random_samples
from alds_onnx.evaluate.sessions import Execution, RunError, check_provider
from alds_onnx.evaluate.verify import TOLERANCES, Candidates, verify
from alds_onnx.graph.accounting import macs_of_layers, model_bytes, num_parameters
from alds_onnx.graph.load import LoadedModel, load_model
from alds_onnx.graph.hints import input_hints
from alds_onnx.graph.layers import Layer, Skipped, find_layers, read_matrix, skipped
from alds_onnx.graph.rewrite import Replacement, rewrite, rounded_factors, with_composed_weights
from alds_onnx.graph.scopes import ModelIndex, Site
from alds_onnx.graph.shapes import infer, known_ranks, known_shapes
from alds_onnx.plans import match_plan
from alds_onnx.search.exact import search_exact
from alds_onnx.search.iterative import search_iterative
from alds_onnx.search.limits import smallest_parameters
from alds_onnx.settings import Progress, Settings, Step
from alds_onnx.values import (
    Budget,
    Cut,
    CutError,
    Decision,
    Factors,
    LayerPlan,
    Plan,
    Report,
    SearchMethod,
    Spectra,
    Status,
    Verification,
)

_T = TypeVar("_T")
_R = TypeVar("_R")

# Fidelity is measured on at most this many runs of calibration data.
_MOST_RUNS = 16

# A compressed model that takes this much longer is slower beyond the noise of the measurement.
_SLOWER = 1.05


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weight:
    """One weight and the layers that read it (at least one), known by the first one's name."""

    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        """Name of the first layer."""
        return self.layers[0].name


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Survey:
    """What is in a model.

    Attributes
    ----------
    loaded, index
        The model.
    found
        Every Conv, Gemm and MatMul, in graph order.
    excluded
        Names of layers that the user wants whole.
    """

    loaded: LoadedModel
    index: ModelIndex
    found: tuple[Layer | Skipped, ...]
    excluded: frozenset[str]

    def weights(self) -> tuple[Weight, ...]:
        """The weights that may be decomposed; one that an excluded layer reads may not."""
        shared: dict[object, list[Layer]] = {}
        for layer in self.found:
            if isinstance(layer, Layer):
                shared.setdefault(layer.fold, []).append(layer)
        groups = (tuple(layers) for layers in shared.values())
        return tuple(
            Weight(layers=group)
            for group in groups
            if not any(layer.name in self.excluded for layer in group)
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decomposition:
    """A weight's factors as the model will hold them, and their error."""

    weight: Weight
    factors: Factors
    error: CutError


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compressed:
    """What `compress` makes.

    Attributes
    ----------
    model
        The compressed model; external tensors still lie in the original's folder.
    plan
        What was decided, layer by layer.
    report
        Everything that was measured.
    source
        The original.
    """

    model: ModelProto
    plan: Plan
    report: Report
    source: LoadedModel


def run(source: object, settings: Settings, progress: Progress) -> Compressed:
    """Compress a model; see `alds_onnx.compress`."""
    clock = _Clock(progress)
    check_provider(settings.provider)
    clock.start(Step.LOAD)
    loaded = load_model(source)  # type: ignore[arg-type]
    survey = _survey(loaded, settings)
    before = num_parameters(survey.index)

    clock.start(Step.SPECTRA)
    survey, curves = _spectra(survey, settings, clock)

    clock.start(Step.SEARCH)
    budget = Budget(before=before, removed=settings.cr) if settings.cr is not None else None
    cuts = _decide(survey, curves, settings, budget)

    clock.start(Step.FACTORIZE)
    decompositions = _factorize(survey, curves, cuts, settings, clock)
    replacements = [Replacement(layers=d.weight.layers, factors=d.factors) for d in decompositions]
    model = rewrite(loaded.model, replacements)

    clock.start(Step.INPUTS)
    samples = _samples(survey, settings)
    macs = _macs(survey, samples, settings)

    clock.start(Step.VERIFY)
    verification = None
    if not settings.dry_run:
        verification = _verify(survey, model, replacements, samples, settings)
    clock.stop()

    after = ModelIndex(model)
    plan = Plan(
        file=loaded.name,
        sha256=loaded.sha256,
        parameters=before,
        search=settings.search,
        seed=settings.seed,
        budget=budget,
        layers=_rows(survey, decompositions, macs),
        parameters_after=num_parameters(after),
    )
    report = Report(
        plan=plan,
        verification=verification,
        macs_before=_total(row.macs_before for row in plan.layers),
        macs_after=_total(row.macs_after for row in plan.layers),
        bytes_before=model_bytes(loaded.model, survey.index),
        bytes_after=model_bytes(model, after),
        seconds=clock.seconds(),
        warnings=_warnings(survey, plan, verification, samples),
    )
    return Compressed(model=model, plan=plan, report=report, source=loaded)


class _Clock:
    """Tells the progress and keeps the time of each step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._times: list[tuple[Step, float]] = []
        self._began = time.perf_counter()

    def start(self, step: Step) -> None:
        self._times.append((step, time.perf_counter()))
        self._progress(step, 0, 0)

    def advance(self, done: int, total: int) -> None:
        self._progress(self._times[-1][0], done, total)

    def stop(self) -> None:
        self._times.append((Step.DONE, time.perf_counter()))
        self._progress(Step.DONE, 1, 1)

    def seconds(self) -> tuple[tuple[str, float], ...]:
        pairs = zip(self._times, self._times[1:], strict=False)
        return tuple((step.value, end - start) for (step, start), (_, end) in pairs)


def _survey(loaded: LoadedModel, settings: Settings) -> Survey:
    index = ModelIndex(loaded.model)
    ranks = known_ranks(index, infer(loaded.model))
    found = find_layers(index, loaded.folder, ranks)
    excluded = settings.excluded([layer.name for layer in found])
    return Survey(loaded=loaded, index=index, found=found, excluded=excluded)


def _spectra(
    survey: Survey, settings: Settings, clock: _Clock
) -> tuple[Survey, dict[str, Spectra]]:
    """Error curves of all weights; those without finite numbers become skipped rows."""
    weights = survey.weights()
    planned = settings.plan

    def compute(weight: Weight) -> Spectra | str:
        layer = weight.layers[0]
        counts = layer.slice_counts if planned is None else _planned_counts(layer, planned)
        matrix = read_matrix(survey.index, layer, survey.loaded.folder)
        if not np.isfinite(matrix).all():
            return "its weight has NaN or infinite entries"
        if not matrix.any():
            return "its weight is all zeros"
        return spectra(matrix, layer.shape, counts)

    results = _side_by_side(compute, weights, settings.threads, clock)
    reasons = {
        layer.name: result
        for weight, result in zip(weights, results, strict=True)
        for layer in weight.layers
        if isinstance(result, str)
    }
    found = tuple(
        skipped(layer, reasons[layer.name])
        if isinstance(layer, Layer) and layer.name in reasons
        else layer
        for layer in survey.found
    )
    curves = {
        weight.name: result
        for weight, result in zip(weights, results, strict=True)
        if isinstance(result, Spectra)
    }
    return replace(survey, found=found), curves


def _planned_counts(layer: Layer, plan: Plan) -> tuple[int, ...]:
    """Only the number of slices that the plan names, if it divides the channels."""
    c = layer.shape.in_channels
    cuts = [row.cut for row in plan.layers if row.name == layer.name]
    return tuple(cut.num_slices for cut in cuts if cut and c % cut.num_slices == 0)


def _side_by_side(
    function: Callable[[_T], _R], items: Sequence[_T], threads: int, clock: _Clock
) -> list[_R]:
    """Map over items on several threads, each with one BLAS thread.

    One BLAS thread makes the sums of every product run in the same order, whatever the number of
    threads: the same input gives the same bytes.
    """
    results: list[_R] = []
    with threadpool_limits(limits=1), ThreadPoolExecutor(threads) as pool:
        try:
            for result in pool.map(function, items):
                results.append(result)
                clock.advance(len(results), len(items))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return results


def _decide(
    survey: Survey, curves: dict[str, Spectra], settings: Settings, budget: Budget | None
) -> dict[str, Cut]:
    """The cut of each weight that is decomposed, by the weight's name."""
    if settings.plan is not None:
        return _planned_cuts(survey, settings.plan)
    if budget is None or not curves:
        return {}
    layers_before = sum(s.shape.num_parameters for s in curves.values())
    allowed = budget.limit - (budget.before - layers_before)
    smallest = smallest_parameters(curves)
    if allowed < smallest:
        raise _out_of_reach(budget, smallest - layers_before)
    if settings.search is SearchMethod.ITERATIVE:
        generator = np.random.default_rng(settings.seed)
        chosen = search_iterative(curves, allowed, generator)
    else:
        chosen = search_exact(curves, allowed)
    return {name: cut for name, cut in chosen.items() if cut is not None}


def _out_of_reach(budget: Budget, change: int) -> BudgetError:
    largest = -change / budget.before
    digits = max(4, 3 - int(np.floor(np.log10(largest)))) if largest > 0 else 4
    shown = np.floor(largest * 10**digits) / 10**digits
    return BudgetError(
        f"a compression ratio of {budget.removed:g} is out of reach: with every layer at rank 1 at "
        f"most {shown:.{digits}f} of the {budget.before:,} parameters can be removed; lower --cr"
    )


def _planned_cuts(survey: Survey, plan: Plan) -> dict[str, Cut]:
    rows = {row.name: row for row in _rows(survey, [], {})}
    cuts = match_plan(plan, rows, survey.loaded.sha256)
    chosen: dict[str, Cut] = {}
    for weight in survey.weights():
        wanted = {cuts.get(layer.name) for layer in weight.layers}
        if len(wanted) > 1:
            names = ", ".join(f"'{layer.name}'" for layer in weight.layers)
            raise PlanError(f"the rows {names} share a weight: their cuts must be the same")
        cut = wanted.pop()
        if cut is not None:
            _check_cut(weight.layers, cut)
            chosen[weight.name] = cut
    return chosen


def _check_cut(layers: Sequence[Layer], cut: Cut) -> None:
    for layer in layers:
        shape, where = layer.shape, f"the plan's row '{layer.name}'"
        if shape.in_channels % cut.num_slices:
            raise PlanError(
                f"{where}: {cut.num_slices} slices do not divide {shape.in_channels} channels"
            )
        if cut.num_slices > 1 and layer.slice_counts == (1,):
            raise PlanError(f"{where}: only 1 slice can be built, the activation has unknown rank")
        highest = min(shape.out_features, shape.num_columns // cut.num_slices)
        if cut.rank > highest:
            raise PlanError(f"{where}: rank {cut.rank} is above the full rank, {highest}")


def _factorize(
    survey: Survey,
    curves: dict[str, Spectra],
    cuts: dict[str, Cut],
    settings: Settings,
    clock: _Clock,
) -> list[Decomposition]:
    weights = [weight for weight in survey.weights() if weight.name in cuts]

    def compute(weight: Weight) -> Decomposition:
        layer = weight.layers[0]
        matrix = read_matrix(survey.index, layer, survey.loaded.folder)
        exact = factorize(matrix, layer.shape, cuts[weight.name])
        factors = rounded_factors(layer, exact)
        error = cut_error(matrix, factors, curves[weight.name])
        return Decomposition(weight=weight, factors=factors, error=error)

    return _side_by_side(compute, weights, settings.threads, clock)


def _samples(survey: Survey, settings: Settings) -> Samples | str:
    """The inputs to run the models on, or the reason why there are none."""
    model, folder = survey.loaded.model, survey.loaded.folder
    execution = Execution(threads=settings.threads, provider=settings.provider)
    if settings.calibration is not None:
        feeds = read_feeds(settings.calibration, model_inputs(model))
        return Samples(feeds=tuple(islice(feeds, _MOST_RUNS)), random=False)
    try:
        return random_samples(
            model,
            folder,
            execution,
            shapes=dict(settings.input_shapes),
            hints=input_hints(survey.index),
            seed=settings.seed,
        )
    except RunError as e:
        return str(e)


def _macs(survey: Survey, samples: Samples | str, settings: Settings) -> dict[Site, int | None]:
    """Multiply-accumulates: from shape inference, and from a run where that does not suffice."""
    inputs = samples.shapes if isinstance(samples, Samples) else dict(settings.input_shapes)
    index = survey.index
    shapes = known_shapes(index, infer(survey.loaded.model, inputs))
    macs = macs_of_layers(index, shapes)
    unknown = [site for site, count in macs.items() if count is None and site.scope == 0]
    if not unknown or isinstance(samples, str):
        return macs
    execution = Execution(threads=settings.threads, provider=settings.provider)
    try:
        shapes |= measured_shapes(
            survey.loaded.model,
            survey.loaded.folder,
            execution,
            samples.feeds[0],
            _tensors_of(index, unknown),
        )
    except RunError:
        return macs
    return macs_of_layers(index, shapes)


def _tensors_of(index: ModelIndex, sites: Iterable[Site]) -> set[str]:
    """Inputs and outputs of nodes of the main graph that are tensors of the main graph."""
    names = {
        name
        for site in sites
        for name in (*index.node(site).input[:2], *index.node(site).output[:1])
    }
    return {name for name in names if name and index.resolve(0, name)}


def _verify(
    survey: Survey,
    model: ModelProto,
    replacements: Sequence[Replacement],
    samples: Samples | str,
    settings: Settings,
) -> Verification:
    if isinstance(samples, str):
        return Verification(status=Status.NOT_VALIDATED, reason=samples)
    types = {r.layers[0].source.tensor.data_type for r in replacements}
    tolerance = max((TOLERANCES[kind] for kind in types), default=0.0)
    loaded = survey.loaded
    models = Candidates(
        original=loaded.model,
        compressed=model,
        composed=with_composed_weights(loaded.model, replacements),
        layers=_outputs_of_main_graph(survey.index, replacements),
        folder=loaded.folder,
    )
    execution = Execution(threads=settings.threads, provider=settings.provider)
    result = verify(models, samples, execution, tolerance)
    if result.status is Status.FAILED:
        raise VerificationError(
            f"verification failed, nothing was written: {result.reason}; please report this"
        )
    return result


def _outputs_of_main_graph(
    index: ModelIndex, replacements: Sequence[Replacement]
) -> tuple[str, ...]:
    sites = [layer.site for replacement in replacements for layer in replacement.layers]
    return tuple(index.node(site).output[0] for site in sites if site.scope == 0)


def _rows(
    survey: Survey, decompositions: Sequence[Decomposition], macs: dict[Site, int | None]
) -> tuple[LayerPlan, ...]:
    done = {
        layer.name: decomposition
        for decomposition in decompositions
        for layer in decomposition.weight.layers
    }
    return tuple(
        _row(layer, done.get(layer.name), macs.get(layer.site), layer.name in survey.excluded)
        for layer in survey.found
    )


def _row(
    layer: Layer | Skipped, done: Decomposition | None, macs: int | None, excluded: bool
) -> LayerPlan:
    if isinstance(layer, Skipped):
        count = int(np.prod(layer.dims, dtype=np.int64)) if layer.dims else 0
        return LayerPlan(
            name=layer.name,
            op=layer.op,
            weight=layer.weight_name,
            shape=layer.dims,
            decision=Decision.SKIP,
            reason=layer.reason,
            parameters_before=count,
            parameters_after=count,
            macs_before=macs,
            macs_after=macs,
        )
    dense = layer.shape.num_parameters
    after = done.factors.cut.num_parameters(layer.shape) if done else dense
    kept = "excluded by the user" if excluded else "whole at this budget"
    return LayerPlan(
        name=layer.name,
        op=layer.op,
        weight=layer.weight_name,
        shape=layer.source.shape,
        decision=Decision.DECOMPOSE if done else Decision.KEEP,
        reason="" if done else kept,
        cut=done.factors.cut if done else None,
        error=done.error if done else None,
        parameters_before=dense,
        parameters_after=after,
        macs_before=macs,
        macs_after=None if macs is None else macs // dense * after,
    )


def _total(counts: Iterable[int | None]) -> int | None:
    """Sum of what is known; None if nothing is."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _warnings(
    survey: Survey, plan: Plan, verification: Verification | None, samples: Samples | str
) -> tuple[str, ...]:
    warnings = []
    if not any(row.cut for row in plan.layers):
        warnings.append("no layer was decomposed: the model is unchanged")
    overridable = [
        layer.source.base.name
        for layer in survey.found
        if isinstance(layer, Layer)
        and layer.source.overridable
        and any(row.cut for row in plan.layers if row.name == layer.name)
    ]
    if overridable:
        names = ", ".join(f"'{name}'" for name in dict.fromkeys(overridable))
        warnings.append(f"no longer graph inputs, because their weights were decomposed: {names}")
    if verification is not None and verification.status is Status.NOT_VALIDATED:
        warnings.append(f"not validated: {verification.reason}")
    ratio = verification.latency_ratio if verification else None
    if ratio is not None and ratio > _SLOWER:
        warnings.append(
            f"the compressed model takes {ratio:.2f} times as long in onnxruntime on this machine: "
            "fewer multiply-accumulates in grouped convolutions are not always faster"
        )
    if isinstance(samples, Samples) and samples.random and verification is not None:
        warnings.append(
            "measured on random inputs, which say little about accuracy: "
            "give real ones with --calibration"
        )
    return tuple(warnings)
