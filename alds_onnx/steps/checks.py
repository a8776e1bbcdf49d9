"""Checking the compressed model: the inputs, the shapes of its tensors, and the checks."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from onnx import ModelProto

from alds_onnx.calibrate.reader import Feed, ModelInput, model_inputs
from alds_onnx.cuts import Work
from alds_onnx.errors import VerificationError
from alds_onnx.evaluate.samples import Samples, measured_shapes, random_samples
from alds_onnx.evaluate.sessions import Execution, RunError
from alds_onnx.evaluate.verify import TOLERANCES, Candidates, verify
from alds_onnx.graph.accounting import work_of_layers
from alds_onnx.graph.files.external import is_large
from alds_onnx.graph.files.spill import Spill
from alds_onnx.graph.rewrite import Replacement, with_composed_weights
from alds_onnx.graph.scopes import Key, ModelIndex, Site
from alds_onnx.graph.shapes import infer, known_shapes, sizes_from_weights
from alds_onnx.settings import Settings
from alds_onnx.steps.data import Data
from alds_onnx.steps.survey import Survey
from alds_onnx.values import Status, Verification

_log = logging.getLogger(__name__)

# Largest number of runs of calibration data on which fidelity is measured.
_MOST_RUNS = 16


def make_samples(survey: Survey, data: Data | None, settings: Settings) -> Samples | str:
    """Choose the inputs of the checks, or say why there are none.

    They are held-out calibration data if some was set aside, other calibration data, or random.
    """
    model, folder = survey.loaded.model, survey.loaded.folder
    execution = Execution(threads=settings.threads, provider=settings.provider)
    if data is not None:
        first, *others = (data.held_out or data.fit)[:_MOST_RUNS]
        return Samples(
            feeds=(*_single_sample_first(first, model_inputs(model)), *others), random=False
        )
    try:
        return random_samples(
            model,
            folder,
            execution,
            shapes=dict(settings.input_shapes),
            known_sizes=sizes_from_weights(survey.index),
            seed=settings.seed,
        )
    except RunError as e:
        return str(e)


def _single_sample_first(feed: Feed, inputs: Sequence[ModelInput]) -> list[Feed]:
    """Split the first sample off a batch if the model allows it, to measure its latency."""
    free = all(spec.dims and spec.dims[0] is None for spec in inputs)
    sizes = {len(array) for array in feed.values() if array.ndim}
    if not free or len(sizes) != 1 or sizes.pop() < 2:
        return [feed]
    parts = (slice(0, 1), slice(1, None))
    return [{name: array[part] for name, array in feed.items()} for part in parts]


def find_shapes(
    survey: Survey, samples: Samples | str, settings: Settings
) -> dict[Key, tuple[int, ...]]:
    """Find the shapes of tensors in one run: by inference or, where it fails, by running."""
    inputs = samples.shapes if isinstance(samples, Samples) else dict(settings.input_shapes)
    index = survey.index
    shapes = known_shapes(index, infer(survey.loaded.model, inputs))
    work = work_of_layers(index, shapes)
    sites = [layer.site for layer in survey.found]
    unknown = [site for site in sites if site.scope == 0 and not _is_known(work.get(site))]
    if not unknown or isinstance(samples, str):
        return shapes
    execution = Execution(threads=settings.threads, provider=settings.provider)
    try:
        shapes |= measured_shapes(
            survey.loaded.model,
            survey.loaded.folder,
            execution,
            samples.feeds[0],
            _tensors_of(index, unknown),
        )
    except RunError as e:
        _log.info("some shapes stay unknown: %s", e)
    return shapes


def _is_known(work: Work | None) -> bool:
    return work is not None and work.inputs is not None


def _tensors_of(index: ModelIndex, sites: Iterable[Site]) -> set[str]:
    """List the inputs and outputs of nodes that are tensors of the main graph."""
    names = {
        name
        for site in sites
        for name in (*index.node(site).input[:2], *index.node(site).output[:1])
    }
    return {name for name in names if name and index.resolve(0, name)}


def check(
    survey: Survey,
    model: ModelProto,
    replacements: Sequence[Replacement],
    samples: Samples | str,
    settings: Settings,
) -> Verification:
    """Check the compressed model with onnxruntime.

    Raises
    ------
    VerificationError
        If the rewrite is not exact.
    """
    if isinstance(samples, str):
        return Verification(status=Status.NOT_VALIDATED, reason=samples)
    spill = Spill() if is_large(survey.loaded.model) else None
    types = {r.layers[0].source.tensor.data_type for r in replacements}
    tolerance = max((TOLERANCES[kind] for kind in types), default=0.0)
    loaded = survey.loaded
    models = Candidates(
        original=loaded.model,
        compressed=model,
        composed=with_composed_weights(loaded.model, replacements, spill),
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
