"""Connects a run with what times its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from alds_onnx.cuts import Work
from alds_onnx.graph.files.external import is_large
from alds_onnx.graph.operators import OPERATORS
from alds_onnx.graph.scopes import Key, Site
from alds_onnx.settings import Measuring, Settings, Step
from alds_onnx.steps.checks import execution_of
from alds_onnx.steps.clock import Clock
from alds_onnx.steps.survey import Advance, Survey, Weight
from alds_onnx.timing.layer_models import IsolatedLayer, isolate
from alds_onnx.timing.layer_times import LayerTimes, TimedWeight
from alds_onnx.timing.store import TimingStore
from alds_onnx.timing.timer import OrtTimer
from alds_onnx.values import SearchMethod

# Models with fewer multiply-accumulates run for less than a fraction of a millisecond, which is as
# much as the call takes; those with more take more than about half a minute to time.
_FEWEST_MACS, _MOST_MACS = 5_000_000, 20_000_000_000


def make_layer_times(
    survey: Survey,
    shapes: Mapping[Key, tuple[int, ...]],
    work: Mapping[Site, Work],
    settings: Settings,
    clock: Clock,
) -> LayerTimes | None:
    """Give what times cuts; None if none are to be timed.

    `shapes` are those of the tensors in one run, and `work` is what the layers compute, where
    known.
    """
    wanted = settings.measuring
    is_untimed = settings.plan is not None or settings.search is SearchMethod.ITERATIVE
    if is_untimed or is_large(survey.loaded.model):
        return None
    if settings.latency_ratio is not None:
        wanted = Measuring.ALWAYS
    if wanted is Measuring.NEVER:
        return None
    is_cheap = _FEWEST_MACS <= sum(own.macs for own in work.values()) <= _MOST_MACS
    if wanted is Measuring.CHEAP and not is_cheap:
        return None

    @contextmanager
    def watch() -> Iterator[Advance]:
        step = clock.start(Step.TIMING)
        yield clock.advance
        clock.start(step)

    weights = {
        weight.name: TimedWeight(
            shape=weight.layers[0].shape, layers=_isolated(survey, weight, shapes)
        )
        for weight in survey.weights()
    }
    timer = OrtTimer(execution_of(settings))
    store = TimingStore(settings.timings, fresh=settings.remeasure)
    return LayerTimes(timer, weights, store, watch)


def _isolated(
    survey: Survey, weight: Weight, shapes: Mapping[Key, tuple[int, ...]]
) -> tuple[IsolatedLayer, ...]:
    """The layers that read a weight, in isolation; none if one of them cannot be timed.

    Lookups are not timed: they take next to no time, so that any cut would be slow, while what it
    adds is little beside the rest of the model.
    """
    found = []
    for layer in weight.layers:
        if OPERATORS[layer.op].is_lookup:
            continue
        name = survey.index.node(layer.site).input[1 - layer.weight_input]
        operand = survey.index.resolve(layer.site.scope, name)
        shape = shapes.get(operand.key) if operand else None
        if layer.site.scope != 0 or not shape or 0 in shape:
            return ()
        found.append(isolate(survey.index, layer.own, shape))
    return tuple(found)
