"""The end of a run: check the compressed model, score it, and report the results."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnx import ModelProto

from alds_onnx.graph.accounting import model_bytes, num_parameters
from alds_onnx.graph.files.external import Spill
from alds_onnx.graph.files.load import LoadedModel
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.scopes import ModelIndex
from alds_onnx.results import LimitResult, Score
from alds_onnx.search.alignment import Alignment
from alds_onnx.settings import Step
from alds_onnx.steps.advice import make_warnings
from alds_onnx.steps.attempt import Attempt, is_timed
from alds_onnx.steps.checks import check
from alds_onnx.steps.clock import Clock
from alds_onnx.steps.evidence import gather
from alds_onnx.steps.prepare import Prepared
from alds_onnx.steps.rows import plan_rows, total
from alds_onnx.steps.survey import Survey
from alds_onnx.timing.slow_cuts import SlowCut, find_slow_cuts
from alds_onnx.values import Plan, Report


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compressed:
    """The result of a compression.

    The external tensors of `model` still lie in the folder of the original, `source`. `spill` holds
    the factors of a large model on disk, as long as this object exists.
    """

    model: ModelProto
    plan: Plan
    report: Report
    source: LoadedModel
    spill: Spill | None


def finish(
    prepared: Prepared, attempt: Attempt, limit_result: LimitResult | None, clock: Clock
) -> Compressed:
    """Check the compressed model, score it, and report the results."""
    evidence = gather(prepared, attempt.decompositions)
    survey, settings, samples = prepared.survey, prepared.settings, prepared.samples
    clock.start(Step.VERIFY)
    verification = None
    if not settings.dry_run:
        verification = check(survey, attempt.model, attempt.decompositions, samples, settings)
    scores = _scores(prepared, attempt, clock)
    clock.stop()
    plan = _plan(prepared, attempt)
    rule = None if settings.plan else settings.alignment
    report = Report(
        plan=plan,
        verification=verification,
        macs_before=total(row.macs_before for row in plan.layers),
        macs_after=total(row.macs_after for row in plan.layers),
        bytes_before=model_bytes(survey.loaded.model),
        bytes_after=model_bytes(attempt.model),
        seconds=clock.seconds(),
        scores=scores,
        limit_result=limit_result,
        preset=rule.preset if rule else None,
        unaligned=_unaligned(survey, plan, rule) if rule else (),
        timed=is_timed(prepared),
        evidence=evidence,
    )
    report = replace(report, warnings=make_warnings(prepared, report, _slow(prepared, attempt)))
    return Compressed(
        model=attempt.model, plan=plan, report=report, source=survey.loaded, spill=attempt.spill
    )


def _plan(prepared: Prepared, attempt: Attempt) -> Plan:
    survey, settings = prepared.survey, prepared.settings
    return Plan(
        file=survey.loaded.name,
        sha256=survey.loaded.sha256,
        parameters=prepared.before,
        objective=settings.objective,
        search=settings.search,
        seed=settings.seed,
        budget=attempt.budgets[0] if attempt.budgets else None,
        constraints=attempt.budgets[1:],
        layers=plan_rows(survey, attempt.decompositions, prepared.work),
        parameters_after=num_parameters(ModelIndex(attempt.model)),
    )


def _unaligned(survey: Survey, plan: Plan, rule: Alignment) -> tuple[str, ...]:
    """Name the layers whose slices and ranks the runtime is not fast at."""
    cuts = {row.name: row.cut for row in plan.layers if row.cut}
    cut = (layer for layer in survey.found if isinstance(layer, Layer) and layer.name in cuts)
    return tuple(layer.name for layer in cut if not rule.allows(layer.shape, cuts[layer.name]))


def _slow(prepared: Prepared, attempt: Attempt) -> tuple[SlowCut, ...]:
    """List the chosen cuts that are slower than their layers, and save the times for other runs."""
    times = prepared.times
    if times is None:
        return ()
    slow = find_slow_cuts(times, {d.weight.name: d.factors.cut for d in attempt.decompositions})
    times.save()
    return tuple(slow)


def _scores(prepared: Prepared, attempt: Attempt, clock: Clock) -> tuple[Score, ...]:
    """Score both models, unless the search for a limit has already done so."""
    if prepared.scoring is None:
        return ()
    judge = prepared.scoring.check
    after = attempt.measurement.scores if attempt.measurement else None
    if after is None:
        clock.start(Step.SCORES)
        after = judge.evaluator(attempt.model, clock.advance)
    return judge.scores(after)
