"""The start of a run: all steps that need no budget."""

from __future__ import annotations

from dataclasses import dataclass

from alds_onnx.cache import Cache
from alds_onnx.cuts import Work
from alds_onnx.evaluate.samples import Samples
from alds_onnx.graph.accounting import num_parameters, work_of_layers
from alds_onnx.graph.files.load import load_model
from alds_onnx.graph.scopes import Site
from alds_onnx.search.minmax import smallest_parameters
from alds_onnx.settings import Settings, Source, Step
from alds_onnx.steps.checks import find_shapes, make_samples
from alds_onnx.steps.clock import Clock
from alds_onnx.steps.data import Data, fit_runner, load_data
from alds_onnx.steps.evaluation import Scoring, make_scoring
from alds_onnx.steps.metrics.base import Metric
from alds_onnx.steps.metrics.observe import data_metric
from alds_onnx.steps.metrics.weights import weight_metric
from alds_onnx.steps.survey import Survey, make_survey, without_unsound
from alds_onnx.steps.timing import make_layer_times
from alds_onnx.timing.layer_times import LayerTimes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """The results of the steps that need no budget. All attempts share them.

    `before` is the number of parameters of the model. `samples` are the inputs of the checks, or
    the reason why there are none. `work` is what the layers compute in one run, where known.
    `times` is None if the settings do not ask for it, or if it takes too long. `scoring` is what
    scores models, and the scores of the original; None without an evaluation, or for a dry run.
    `attention_cut` tells whether projections of attention are cut although the user did not include
    them.
    """

    survey: Survey
    before: int
    settings: Settings
    data: Data | None
    samples: Samples | str
    work: dict[Site, Work]
    times: LayerTimes | None
    scoring: Scoring | None
    metric: Metric
    attention_cut: bool = False


def prepare(
    source: Source, settings: Settings, clock: Clock, *, first: Prepared | None = None
) -> Prepared:
    """Read the model and the data, score the original, and draw the error curves.

    Projections of attention stay whole, unless `first` is given: the result of preparing the same
    run without them. Its model, data and scores are used again, because some data can be read only
    once.
    """
    clock.start(Step.LOAD)
    Cache(folder=settings.cache).prepare()
    loaded = first.survey.loaded if first else load_model(source)
    survey = make_survey(loaded, settings, keep_attention=first is None)
    data = first.data if first else load_data(survey, settings)
    scoring = first.scoring if first else _score_original(survey, data, settings, clock)
    clock.start(Step.SPECTRA)
    survey = without_unsound(survey, settings.threads, clock.advance)
    if data is None:
        metric: Metric = weight_metric(survey, settings, clock.advance)
    else:
        metric = data_metric(survey, fit_runner(data, survey, settings), settings, clock)
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
        times=make_layer_times(survey, shapes, work, settings, clock),
        scoring=scoring,
        metric=metric,
        attention_cut=first is not None,
    )


def _score_original(
    survey: Survey, data: Data | None, settings: Settings, clock: Clock
) -> Scoring | None:
    """Score the original, if the settings ask for it."""
    if settings.evaluate is None or (settings.max_drop is None and settings.dry_run):
        return None
    clock.start(Step.SCORES)
    return make_scoring(survey, data, settings, clock.advance)


def reach(prepared: Prepared) -> float:
    """Give the largest fraction that can be removed, with every layer cut as far as possible."""
    dense = sum(spectra.shape.num_parameters for spectra in prepared.metric.spectra.values())
    smallest = prepared.before - dense + smallest_parameters(prepared.metric.spectra)
    return 1 - smallest / prepared.before if prepared.before else 0.0
