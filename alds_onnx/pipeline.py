"""compress(): the steps in order, each a call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

from onnx import ModelProto

from alds_onnx.cache import Cache
from alds_onnx.cuts import Cut, Spectra, Work
from alds_onnx.decompose.factorize import cut_error, factorize
from alds_onnx.errors import BudgetError, UsageError
from alds_onnx.evaluate.samples import Samples
from alds_onnx.evaluate.sessions import check_provider
from alds_onnx.evidence import Evidence
from alds_onnx.graph.accounting import model_bytes, num_parameters, work_of_layers
from alds_onnx.graph.files.external import external_tensors, is_large
from alds_onnx.graph.files.load import LoadedModel, load_model
from alds_onnx.graph.files.spill import Spill
from alds_onnx.graph.layers import read_matrix
from alds_onnx.graph.rewrite import Replacement, rewrite, stored_factors
from alds_onnx.graph.scopes import ModelIndex, Site
from alds_onnx.search.limits import smallest_parameters
from alds_onnx.search.target import fractions, largest_that_holds, most_trials
from alds_onnx.settings import Progress, Settings, Source, Step
from alds_onnx.steps.advice import Findings, make_warnings, unaligned
from alds_onnx.steps.budgets import Limit, make_limits, parameter_limit
from alds_onnx.steps.calibrated import Calibrated, observe, probe_all
from alds_onnx.steps.checks import check, find_shapes, make_samples
from alds_onnx.steps.clock import Clock
from alds_onnx.steps.data import Data, load_data
from alds_onnx.steps.decide import decide, planned_cuts
from alds_onnx.steps.evaluation import (
    Evaluator,
    Measured,
    check_finite,
    make_evaluator,
    make_scores,
)
from alds_onnx.steps.evidence import gather
from alds_onnx.steps.fitting import fit, search
from alds_onnx.steps.latency import corrected, latency_limit, make_table, most_saved, need_pace
from alds_onnx.steps.pace import Pace, Slow, decide_in_time, make_pace
from alds_onnx.steps.rows import Decomposition, plan_rows, total
from alds_onnx.steps.survey import Survey, Weight, make_survey, side_by_side, weight_spectra
from alds_onnx.steps.target import Gauge, Reading, make_gauge, make_target
from alds_onnx.targets import Score, Target
from alds_onnx.values import Budget, Plan, Report


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Prepared:
    """What is known before anything is cut; it serves every attempt.

    Attributes
    ----------
    survey, before
        The model, and its number of parameters.
    settings
        As given, with the calibration data that ranks and factors rest on.
    data, samples
        Calibration data, and the inputs of the checks or the reason why there are none.
    work
        What the layers compute in one run, where known.
    pace
        Times cuts of the layers; None where that was not asked for or is not cheap.
    scoring
        What models are scored by, and the scores of the original; None if there is no evaluation,
        or only a dry run.
    curves
        Error curves of the weights by name; with calibration data, of the layers on it.
    calibrated
        What calibration data says about the layers; None without.
    attention_cut
        Whether projections of attention are cut although nobody asked for them.
    """

    survey: Survey
    before: int
    settings: Settings
    data: Data | None
    samples: Samples | str
    work: dict[Site, Work]
    pace: Pace | None
    scoring: tuple[Evaluator, Measured] | None
    curves: dict[str, Spectra]
    calibrated: Calibrated | None
    attention_cut: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Attempt:
    """A compressed model; `reading` is what was measured of it if a limit was asked for."""

    budgets: tuple[Budget, ...]
    decompositions: list[Decomposition]
    replacements: list[Replacement]
    model: ModelProto
    spill: Spill | None
    reading: Reading | None = None


def run(source: Source, settings: Settings, progress: Progress) -> Compressed:
    """Compress a model; see `alds_onnx.compress`.

    Projections of attention stay whole; a budget that is out of reach so gets them too.
    """
    check_provider(settings.provider)
    clock = Clock(progress)
    prepared = _prepare(source, settings, clock)
    try:
        return _compressed(prepared, clock)
    except BudgetError:
        if not prepared.survey.attention:
            raise
    return _compressed(_prepare(source, settings, clock, first=prepared), clock)


def _compressed(prepared: _Prepared, clock: Clock) -> Compressed:
    settings = prepared.settings
    gauge = make_gauge(prepared.survey, settings, prepared.data, prepared.samples, prepared.scoring)
    if gauge is None:
        attempt, target = _attempt(prepared, _limits(prepared, clock), clock), None
    else:
        attempt, target = _search(prepared, gauge, clock)
    return _finish(prepared, attempt, target, clock)


def run_sweep(source: Source, settings: Settings, progress: Progress) -> Iterator[Compressed]:
    """Compress a model by several ratios; see `alds_onnx.sweep`.

    Projections of attention are cut for those ratios that are out of reach without.
    """
    clock = Clock(progress)
    check_provider(settings.provider)
    usual = furthest = _prepare(source, settings, clock)
    reach = _reach(usual)
    if usual.survey.attention and max(settings.sweep) > reach:
        furthest = _prepare(source, settings, clock, first=usual)
    within = [cr for cr in settings.sweep if cr <= _reach(furthest)]
    for number, cr in enumerate(within or settings.sweep[:1], start=1):
        clock.attempt(number, len(within))
        prepared = usual if cr <= reach else furthest
        limits = (parameter_limit(prepared.before, cr),)
        yield _finish(prepared, _attempt(prepared, limits, clock), None, clock)


def _evidence(prepared: _Prepared, attempt: _Attempt) -> Evidence:
    """What the choice rested on."""
    found = prepared.calibrated
    return gather(
        curves=prepared.curves,
        sensitivities=None if found is None else found.sensitivities,
        decompositions=attempt.decompositions,
        survey=prepared.survey,
        settings=prepared.settings,
        before=prepared.before,
    )


def _limits(prepared: _Prepared, clock: Clock) -> tuple[Limit, ...]:
    """The budgets that were asked for."""
    survey, settings = prepared.survey, prepared.settings
    limits = make_limits(survey, settings, prepared.before, prepared.work)
    if settings.latency_ratio is None:
        return limits
    pace, samples = need_pace(prepared.pace), prepared.samples
    if isinstance(samples, str):
        raise UsageError(f"--latency-ratio: the model cannot be timed: {samples}")
    feeds, calibrated = samples.feeds[0], prepared.calibrated
    table = make_table(survey, settings.alignment, list(prepared.curves), pace)
    whole = pace.whole({}, feeds).dense
    limit = latency_limit(settings.latency_ratio, whole, table)
    most = most_saved(table) / whole

    def choose(limits: Sequence[Limit]) -> dict[str, Cut]:
        if calibrated is None:
            return decide(prepared.curves, settings, limits)
        return search(survey, calibrated, settings, limits)

    clock.start(Step.TIMING)
    return corrected((*limits, limit), choose, lambda cuts: pace.whole(cuts, feeds).ratio, most)


def _prepare(
    source: Source, settings: Settings, clock: Clock, *, first: _Prepared | None = None
) -> _Prepared:
    """Everything that needs no budget: read, score the original, look at weights and data.

    Projections of attention stay whole; after a `first` time without them they may be cut. What was
    read and scored then is not read again: some data can be read only once.
    """
    clock.start(Step.LOAD)
    Cache(folder=settings.cache).prepare()
    loaded = first.survey.loaded if first else load_model(source)
    survey = make_survey(loaded, settings, keep_attention=first is None)
    data = first.data if first else load_data(survey, settings)
    scoring = first.scoring if first else _score_original(survey, settings, clock)
    clock.start(Step.SPECTRA)
    survey, curves = weight_spectra(survey, settings, clock.advance)
    calibrated = None
    if data is not None:
        settings = replace(settings, calibration=data.fit)
        calibrated = _calibrate(survey, curves, settings, clock)
        curves = {name: probe.spectra for name, probe in calibrated.probes.items()}
    clock.start(Step.INPUTS)
    samples = make_samples(survey, data, settings)
    shapes = find_shapes(survey, samples, settings)
    work = work_of_layers(survey.index, shapes)
    return _Prepared(
        survey=survey,
        before=num_parameters(survey.index),
        settings=settings,
        data=data,
        samples=samples,
        work=work,
        pace=make_pace(survey, shapes, work, settings, clock),
        scoring=scoring,
        curves=curves,
        calibrated=calibrated,
        attention_cut=first is not None,
    )


def _score_original(
    survey: Survey, settings: Settings, clock: Clock
) -> tuple[Evaluator, Measured] | None:
    """What models are scored by, and what the original scores, where that is wanted."""
    evaluator = make_evaluator(survey, settings)
    if evaluator is None or (settings.max_drop is None and settings.dry_run):
        return None
    clock.start(Step.SCORES)
    measured = evaluator(survey.loaded.model, clock.advance)
    check_finite(measured)
    return evaluator, measured


def _calibrate(
    survey: Survey, curves: dict[str, Spectra], settings: Settings, clock: Clock
) -> Calibrated:
    """What the layers do to calibration data."""
    clock.start(Step.STATISTICS)
    calibrated = observe(survey, list(curves), settings, clock.advance)
    if settings.plan is not None:
        return calibrated
    clock.start(Step.SENSITIVITY)
    return probe_all(survey, calibrated, settings, clock.advance)


def _search(prepared: _Prepared, gauge: Gauge, clock: Clock) -> tuple[_Attempt, Target]:
    """The largest compression that stays within the limit.

    Raises
    ------
    TargetError
        If none does.
    """
    candidates = fractions(_reach(prepared))
    numbers = count(1)

    def attempt(removed: float) -> _Attempt:
        clock.attempt(next(numbers), most_trials(candidates))
        made = _attempt(prepared, (parameter_limit(prepared.before, removed),), clock)
        clock.start(Step.MEASURE)
        return replace(made, reading=gauge.read(made.model, clock.advance))

    found = largest_that_holds(attempt, _value, gauge.limit, candidates)
    target = make_target(gauge, found.trials)
    return found.best or _attempt(prepared, (), clock), target


def _value(attempt: _Attempt) -> float:
    assert attempt.reading is not None
    return attempt.reading.value


def _reach(prepared: _Prepared) -> float:
    """The largest fraction that can be removed: every layer cut as far as possible."""
    dense = sum(spectra.shape.num_parameters for spectra in prepared.curves.values())
    smallest = prepared.before - dense + smallest_parameters(prepared.curves)
    return 1 - smallest / prepared.before if prepared.before else 0.0


def _attempt(prepared: _Prepared, limits: Sequence[Limit], clock: Clock) -> _Attempt:
    """Choose ranks within budgets, or take those of the plan; compute factors; put them in."""
    survey, settings = prepared.survey, prepared.settings
    if prepared.calibrated is None:
        clock.start(Step.SEARCH)
        if settings.plan is not None:
            cuts = planned_cuts(survey, settings.plan)
        else:
            cuts = decide_in_time(prepared.curves, settings, limits, _judge(prepared))
        clock.start(Step.FACTORIZE)
        decompositions = _factorize(prepared, cuts, clock)
    else:
        clock.start(Step.FACTORIZE)
        decompositions = fit(
            survey, prepared.calibrated, settings, limits, clock.advance, pace=_judge(prepared)
        )
    replacements = [
        Replacement(layers=d.weight.layers, factors=d.factors, bias=d.bias) for d in decompositions
    ]
    spill = Spill() if _is_streamed(survey.loaded.model) else None
    return _Attempt(
        budgets=tuple(limit.budget for limit in limits),
        decompositions=decompositions,
        replacements=replacements,
        model=rewrite(survey.loaded.model, replacements, spill),
        spill=spill,
    )


def _judge(prepared: _Prepared) -> Pace | None:
    """What keeps slow cuts out; a budget of time does that by itself."""
    return prepared.pace if prepared.settings.latency_ratio is None else None


def _is_timed(prepared: _Prepared) -> bool:
    """Whether times decided: those of a budget of time do, and others unless slow is allowed."""
    if prepared.pace is None:
        return False
    return _judge(prepared) is None or not prepared.settings.allow_slower


def _is_streamed(model: ModelProto) -> bool:
    """Whether new weights go to a file: those of a large model that has data files itself."""
    return is_large(model) and bool(external_tensors(model))


def _factorize(prepared: _Prepared, cuts: dict[str, Cut], clock: Clock) -> list[Decomposition]:
    """Factors from the weights alone."""
    survey = prepared.survey
    weights = [weight for weight in survey.weights() if weight.name in cuts]

    def compute(weight: Weight) -> Decomposition:
        layer = weight.layers[0]
        matrix = read_matrix(survey.index, layer, survey.loaded.folder)
        exact = factorize(matrix, layer.shape, cuts[weight.name])
        factors = stored_factors(layer, exact)
        error = cut_error(matrix, factors, prepared.curves[weight.name])
        return Decomposition(weight=weight, factors=factors, error=error)

    return side_by_side(
        compute,
        weights,
        prepared.settings.threads,
        clock.advance,
        size=lambda weight: weight.num_parameters,
    )


def _finish(
    prepared: _Prepared,
    attempt: _Attempt,
    target: Target | None,
    clock: Clock,
) -> Compressed:
    """Check the compressed model, score it, and say everything that is known."""
    evidence = _evidence(prepared, attempt)
    # The float64 weights that a fit rests on should not stay beside the sessions of the checks.
    prepared = replace(prepared, calibrated=None)
    survey, settings, samples = prepared.survey, prepared.settings, prepared.samples
    clock.start(Step.VERIFY)
    verification = None
    if not settings.dry_run:
        verification = check(survey, attempt.model, attempt.replacements, samples, settings)
    scores = _scores(prepared, attempt, clock)
    clock.stop()
    after = ModelIndex(attempt.model)
    plan = Plan(
        file=survey.loaded.name,
        sha256=survey.loaded.sha256,
        parameters=prepared.before,
        objective=settings.objective,
        search=settings.search,
        seed=settings.seed,
        budget=attempt.budgets[0] if attempt.budgets else None,
        constraints=attempt.budgets[1:],
        layers=plan_rows(survey, attempt.decompositions, prepared.work),
        parameters_after=num_parameters(after),
    )
    findings = Findings(
        survey=survey,
        plan=plan,
        data=prepared.data,
        verification=verification,
        scores=scores,
        target=target,
        alignment=None if settings.plan else settings.alignment,
        attention_cut=prepared.attention_cut,
        slow=_slow(prepared, attempt),
        measured=prepared.scoring[1] if prepared.scoring else None,
        price=evidence.price,
    )
    report = _report(findings, attempt.model, after, clock)
    report = replace(report, evidence=evidence, timed=_is_timed(prepared))
    return Compressed(
        model=attempt.model, plan=plan, report=report, source=survey.loaded, spill=attempt.spill
    )


def _slow(prepared: _Prepared, attempt: _Attempt) -> tuple[Slow, ...]:
    """Cuts that were kept although they are slower; times are kept for other runs."""
    pace = prepared.pace
    if pace is None:
        return ()
    slow = pace.slow({d.weight.name: d.factors.cut for d in attempt.decompositions})
    pace.save()
    return tuple(slow)


def _scores(prepared: _Prepared, attempt: _Attempt, clock: Clock) -> tuple[Score, ...]:
    """Scores before and after; those after may be known from the search."""
    if prepared.scoring is None:
        return ()
    evaluator, before = prepared.scoring
    after = attempt.reading.measured if attempt.reading else None
    if after is None:
        clock.start(Step.SCORES)
        after = evaluator(attempt.model, clock.advance)
    return make_scores(before, after)


def _report(found: Findings, model: ModelProto, after: ModelIndex, clock: Clock) -> Report:
    rows, original = found.plan.layers, found.survey
    return Report(
        plan=found.plan,
        verification=found.verification,
        macs_before=total(row.macs_before for row in rows),
        macs_after=total(row.macs_after for row in rows),
        bytes_before=model_bytes(original.loaded.model, original.index),
        bytes_after=model_bytes(model, after),
        seconds=clock.seconds(),
        warnings=make_warnings(found),
        scores=found.scores,
        target=found.target,
        preset=found.alignment.preset if found.alignment else None,
        unaligned=unaligned(found),
    )
