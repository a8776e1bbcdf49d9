"""Everything that needs no budget: read, score the original, look at weights and data."""

from __future__ import annotations

from dataclasses import dataclass

from alds_onnx.cache import Cache
from alds_onnx.cuts import Work
from alds_onnx.evaluate.samples import Samples
from alds_onnx.graph.accounting import num_parameters, work_of_layers
from alds_onnx.graph.load import load_model
from alds_onnx.graph.scopes import Site
from alds_onnx.search.smallest import smallest_parameters
from alds_onnx.settings import Settings, Source, Step
from alds_onnx.steps.checks import find_shapes, make_samples
from alds_onnx.steps.clock import Clock
from alds_onnx.steps.data import Data, load_data
from alds_onnx.steps.evaluation import Evaluator, ModelScores, check_finite, make_evaluator
from alds_onnx.steps.metrics.base import Metric
from alds_onnx.steps.metrics.observe import data_metric
from alds_onnx.steps.metrics.weights import weight_metric
from alds_onnx.steps.pace import Pace, make_pace
from alds_onnx.steps.survey import Survey, make_survey, without_unsound


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
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
    scoring: tuple[Evaluator, ModelScores] | None
    metric: Metric
    attention_cut: bool = False


def prepare(
    source: Source, settings: Settings, clock: Clock, *, first: Prepared | None = None
) -> Prepared:
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
    return Prepared(
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
) -> tuple[Evaluator, ModelScores] | None:
    """What models are scored by, and what the original scores, where that is wanted."""
    evaluator = make_evaluator(survey, settings)
    if evaluator is None or (settings.max_drop is None and settings.dry_run):
        return None
    clock.start(Step.SCORES)
    measured = evaluator(survey.loaded.model, clock.advance)
    check_finite(measured)
    return evaluator, measured


def reach(prepared: Prepared) -> float:
    """The largest fraction that can be removed: every layer cut as far as possible."""
    dense = sum(spectra.shape.num_parameters for spectra in prepared.metric.spectra.values())
    smallest = prepared.before - dense + smallest_parameters(prepared.metric.spectra)
    return 1 - smallest / prepared.before if prepared.before else 0.0
