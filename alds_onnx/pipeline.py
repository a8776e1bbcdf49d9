"""compress(): the steps in order, each a call."""

from __future__ import annotations

import time
from dataclasses import dataclass

from onnx import ModelProto

from alds_onnx.decompose.factorize import cut_error, factorize
from alds_onnx.evaluate.sessions import check_provider
from alds_onnx.graph.accounting import model_bytes, num_parameters
from alds_onnx.graph.external import external_tensors, is_large
from alds_onnx.graph.layers import read_matrix
from alds_onnx.graph.load import LoadedModel, load_model
from alds_onnx.graph.rewrite import Replacement, rewrite, stored_factors
from alds_onnx.graph.scopes import ModelIndex
from alds_onnx.graph.spill import Spill
from alds_onnx.settings import Progress, Settings, Source, Step
from alds_onnx.steps.calibrated import choose, observe, reconstruct_all, sensitivities
from alds_onnx.steps.checks import check, count_macs, make_samples
from alds_onnx.steps.decide import decide
from alds_onnx.steps.rows import Decomposition, make_warnings, plan_rows, total
from alds_onnx.steps.survey import Survey, Weight, make_survey, side_by_side, weight_spectra
from alds_onnx.values import Budget, Cut, Plan, Report, Spectra


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
    spill
        What holds the factors of a large model; they go when it does.
    """

    model: ModelProto
    plan: Plan
    report: Report
    source: LoadedModel
    spill: Spill | None


def run(source: Source, settings: Settings, progress: Progress) -> Compressed:
    """Compress a model; see `alds_onnx.compress`."""
    clock = _Clock(progress)
    check_provider(settings.provider)
    clock.start(Step.LOAD)
    survey = make_survey(load_model(source), settings)
    before = num_parameters(survey.index)
    budget = Budget(before=before, removed=settings.cr) if settings.cr is not None else None

    clock.start(Step.SPECTRA)
    survey, curves = weight_spectra(survey, settings, clock.advance)
    if settings.calibration is None:
        decompositions = _by_weights(survey, curves, settings, budget, clock)
    else:
        decompositions = _by_data(survey, curves, settings, budget, clock)
    replacements = [
        Replacement(layers=d.weight.layers, factors=d.factors, bias=d.bias) for d in decompositions
    ]
    spill = Spill() if _is_streamed(survey.loaded.model) else None
    model = rewrite(survey.loaded.model, replacements, spill)

    clock.start(Step.INPUTS)
    samples = make_samples(survey, settings)
    macs = count_macs(survey, samples, settings)

    clock.start(Step.VERIFY)
    verification = None
    if not settings.dry_run:
        verification = check(survey, model, replacements, samples, settings)
    clock.stop()

    after = ModelIndex(model)
    plan = Plan(
        file=survey.loaded.name,
        sha256=survey.loaded.sha256,
        parameters=before,
        objective=settings.objective,
        search=settings.search,
        seed=settings.seed,
        budget=budget,
        layers=plan_rows(survey, decompositions, macs),
        parameters_after=num_parameters(after),
    )
    report = Report(
        plan=plan,
        verification=verification,
        macs_before=total(row.macs_before for row in plan.layers),
        macs_after=total(row.macs_after for row in plan.layers),
        bytes_before=model_bytes(survey.loaded.model, survey.index),
        bytes_after=model_bytes(model, after),
        seconds=clock.seconds(),
        warnings=make_warnings(survey, plan, verification, samples),
    )
    return Compressed(model=model, plan=plan, report=report, source=survey.loaded, spill=spill)


def _is_streamed(model: ModelProto) -> bool:
    """Whether new weights go to a file: those of a large model that has data files itself."""
    return is_large(model) and bool(external_tensors(model))


def _by_weights(
    survey: Survey,
    curves: dict[str, Spectra],
    settings: Settings,
    budget: Budget | None,
    clock: _Clock,
) -> list[Decomposition]:
    """Ranks and factors from the weights alone."""
    clock.start(Step.SEARCH)
    cuts = decide(survey, curves, settings, budget)
    clock.start(Step.FACTORIZE)
    return _factorize(survey, curves, cuts, settings, clock)


def _by_data(
    survey: Survey,
    curves: dict[str, Spectra],
    settings: Settings,
    budget: Budget | None,
    clock: _Clock,
) -> list[Decomposition]:
    """Ranks and factors from what the layers do to calibration data."""
    clock.start(Step.STATISTICS)
    calibrated = observe(survey, list(curves), settings, clock.advance)
    clock.start(Step.SENSITIVITY)
    measured = {}
    if settings.plan is None:
        measured = sensitivities(survey, calibrated, clock.advance)
    clock.start(Step.SEARCH)
    cuts = choose(survey, calibrated, measured, settings, budget)
    clock.start(Step.FACTORIZE)
    return reconstruct_all(survey, calibrated, measured, cuts, clock.advance)


class _Clock:
    """Tells the progress and keeps the time of each step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._times: list[tuple[Step, float]] = []

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
        factors = stored_factors(layer, exact)
        error = cut_error(matrix, factors, curves[weight.name])
        return Decomposition(weight=weight, factors=factors, error=error)

    return side_by_side(compute, weights, settings.threads, clock.advance)
