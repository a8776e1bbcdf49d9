"""compress(): the steps in order, each a call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count

from onnx import ModelProto

from alds_onnx.cache import Cache
from alds_onnx.cuts import Work
from alds_onnx.errors import BudgetError, UsageError
from alds_onnx.evaluate.samples import Samples
from alds_onnx.evaluate.sessions import check_provider
from alds_onnx.graph.accounting import model_bytes, num_parameters, work_of_layers
from alds_onnx.graph.external import external_tensors, is_large
from alds_onnx.graph.load import LoadedModel, load_model
from alds_onnx.graph.rewrite import Replacement, rewrite
from alds_onnx.graph.scopes import ModelIndex, Site
from alds_onnx.graph.spill import Spill
from alds_onnx.search.budgets import Limit, parameter_limit
from alds_onnx.search.choose import (
    Candidates,
    Choice,
    Excluded,
    Iterative,
    LargestError,
    Objective,
    SumOfErrors,
    choose,
)
from alds_onnx.search.limits import smallest_parameters
from alds_onnx.search.target import fractions, largest_that_holds, most_trials
from alds_onnx.settings import Progress, Settings, Source, Step
from alds_onnx.steps.advice import Findings, make_warnings, unaligned
from alds_onnx.steps.budgets import make_limits
from alds_onnx.steps.checks import check, find_shapes, make_samples
from alds_onnx.steps.clock import Clock
from alds_onnx.steps.data import Data, load_data
from alds_onnx.steps.evaluation import (
    Evaluator,
    Measured,
    check_finite,
    make_evaluator,
    make_scores,
)
from alds_onnx.steps.evidence import gather
from alds_onnx.steps.latency import corrected, latency_limit, make_table, most_saved, need_pace
from alds_onnx.steps.metrics.base import Metric
from alds_onnx.steps.metrics.observe import data_metric
from alds_onnx.steps.metrics.weights import weight_metric
from alds_onnx.steps.pace import Pace, Slow, make_pace, without_slow
from alds_onnx.steps.planned import planned_cuts
from alds_onnx.steps.rows import Decomposition, plan_rows, total
from alds_onnx.steps.survey import Survey, make_survey, without_unsound
from alds_onnx.steps.target import Gauge, Reading, make_gauge, make_target
from alds_onnx.targets import Score, Target
from alds_onnx.values import Budget, Plan, Report, SearchMethod
from alds_onnx.values import Objective as ObjectiveName


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
        As given.
    data, samples
        Calibration data, and the inputs of the checks or the reason why there are none.
    work
        What the layers compute in one run, where known.
    pace
        Times cuts of the layers; None where that was not asked for or is not cheap.
    scoring
        What models are scored by, and the scores of the original; None if there is no evaluation,
        or only a dry run.
    metric
        What the error of a layer means, and how its factors are found.
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
    metric: Metric
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
        attempt, target = _limited(prepared, gauge, clock)
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


def _limits(prepared: _Prepared, clock: Clock) -> tuple[Limit, ...]:
    """The budgets that were asked for."""
    survey, settings = prepared.survey, prepared.settings
    limits = make_limits(survey, settings, prepared.before, prepared.work)
    if settings.latency_ratio is None:
        return limits
    pace, samples = need_pace(prepared.pace), prepared.samples
    if isinstance(samples, str):
        raise UsageError(f"--latency-ratio: the model cannot be timed: {samples}")
    feeds = samples.feeds[0]
    table = make_table(survey, settings.alignment, list(prepared.metric.spectra), pace)
    whole = pace.whole({}, feeds).dense
    limit = latency_limit(settings.latency_ratio, whole, table)
    clock.start(Step.TIMING)
    return corrected(
        (*limits, limit),
        lambda limits: _searched(prepared, limits).cuts,
        lambda cuts: pace.whole(cuts, feeds).ratio,
        most_saved(table) / whole,
    )


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
    survey = without_unsound(survey, settings.threads, clock.advance)
    if data is None:
        metric: Metric = weight_metric(survey, settings, clock.advance)
    else:
        metric = data_metric(survey, data.fit, settings, clock)
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
        metric=metric,
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


def _limited(prepared: _Prepared, gauge: Gauge, clock: Clock) -> tuple[_Attempt, Target]:
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
    dense = sum(spectra.shape.num_parameters for spectra in prepared.metric.spectra.values())
    smallest = prepared.before - dense + smallest_parameters(prepared.metric.spectra)
    return 1 - smallest / prepared.before if prepared.before else 0.0


def _attempt(prepared: _Prepared, limits: Sequence[Limit], clock: Clock) -> _Attempt:
    """Choose cuts within budgets, or take those of the plan; compute factors; put them in."""
    survey = prepared.survey
    clock.start(Step.SEARCH)
    choice, excluded = _chosen(prepared, limits)

    def reconsider(scale: Mapping[str, float]) -> Choice:
        return _chosen(prepared, limits, scale, excluded)[0]

    clock.start(Step.FACTORIZE)
    decompositions = prepared.metric.fit(choice, reconsider, clock.advance)
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


def _chosen(
    prepared: _Prepared,
    limits: Sequence[Limit],
    scale: Mapping[str, float] | None = None,
    excluded: Excluded | None = None,
) -> tuple[Choice, Excluded]:
    """The cuts of the plan, or those that a search finds; and what it had to exclude as slow."""
    survey, settings = prepared.survey, prepared.settings
    if settings.plan is not None:
        return Choice(cuts=planned_cuts(survey, settings.plan)), {}
    known, judge = excluded or {}, _judge(prepared)
    if judge is None or settings.allow_slower:
        return _searched(prepared, limits, scale, known), known
    choice, paced = without_slow(
        lambda excluded: _searched(prepared, limits, scale, excluded),
        lambda choice: choice.cuts,
        judge,
        known,
    )
    return choice, paced.bans


def _searched(
    prepared: _Prepared,
    limits: Sequence[Limit],
    scale: Mapping[str, float] | None = None,
    excluded: Excluded | None = None,
) -> Choice:
    metric, settings = prepared.metric, prepared.settings
    return choose(
        Candidates(spectra=metric.spectra, damage=metric.damage),
        limits,
        _objective(settings),
        settings.alignment,
        tolerance=metric.tolerance,
        scale=scale,
        excluded=excluded or {},
    )


def _objective(settings: Settings) -> Objective:
    if settings.search is SearchMethod.ITERATIVE:
        return Iterative(seed=settings.seed)
    if settings.objective is ObjectiveName.SUM_OUTPUT_ERROR:
        return SumOfErrors()
    return LargestError()


def _judge(prepared: _Prepared) -> Pace | None:
    """What keeps slow cuts out; a budget of time needs no such filter."""
    return prepared.pace if prepared.settings.latency_ratio is None else None


def _is_timed(prepared: _Prepared) -> bool:
    """Whether times decided: those of a budget of time do, and others unless slow is allowed."""
    if prepared.pace is None:
        return False
    return _judge(prepared) is None or not prepared.settings.allow_slower


def _is_streamed(model: ModelProto) -> bool:
    """Whether new weights go to a file: those of a large model that has data files itself."""
    return is_large(model) and bool(external_tensors(model))


def _finish(
    prepared: _Prepared,
    attempt: _Attempt,
    target: Target | None,
    clock: Clock,
) -> Compressed:
    """Check the compressed model, score it, and say everything that is known."""
    evidence = gather(
        prepared.metric,
        decompositions=attempt.decompositions,
        survey=prepared.survey,
        settings=prepared.settings,
        before=prepared.before,
    )
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
