"""Checking the compressed model: the inputs, the shapes of its tensors, and the checks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from onnx import ModelProto

from alds_onnx.calibrate.reader import Feed, ModelInput, model_inputs
from alds_onnx.errors import VerificationError
from alds_onnx.evaluate.random_inputs import Hints
from alds_onnx.evaluate.samples import Samples, measured_shapes, random_samples
from alds_onnx.evaluate.sessions import Execution, RunError
from alds_onnx.evaluate.verify import TOLERANCES, Candidates, verify
from alds_onnx.graph.accounting import work_of_layers
from alds_onnx.graph.files.external import Spill, is_large
from alds_onnx.graph.files.load import LoadedModel
from alds_onnx.graph.operators import operator_of
from alds_onnx.graph.rewrite import Replacement, with_composed_weights
from alds_onnx.graph.scopes import Key, ModelIndex, first_output
from alds_onnx.graph.shapes import ends_of_ids, infer, known_shapes, sizes_from_weights
from alds_onnx.results import Status, Verification
from alds_onnx.settings import MergeSettings, Settings
from alds_onnx.steps.data import Data, count_samples
from alds_onnx.steps.rows import Decomposition
from alds_onnx.steps.survey import Survey

_log = logging.getLogger(__name__)


def make_samples(survey: Survey, data: Data | None, settings: Settings) -> Samples | str:
    """Choose the inputs of the checks, or say why there are none.

    They are the calibration data that was set aside for them, all of it if there is too little to
    set any aside, or random.
    """
    if data is None:
        return random_inputs(survey.loaded, survey.index, settings)
    feeds = data.check or data.fit
    if data.separable:
        inputs = model_inputs(survey.loaded.model)
        feeds = (*_single_sample_first(feeds[0], inputs), *feeds[1:])
    return Samples(
        feeds=feeds,
        random=False,
        held_out=bool(data.check),
        left_out=data.left_out,
        num_fitted=(count_samples(data.halves[0]), count_samples(data.fit)),
    )


def random_inputs(
    loaded: LoadedModel, index: ModelIndex, settings: Settings | MergeSettings
) -> Samples | str:
    """Make random inputs on which a model runs, or say why there are none."""
    try:
        return random_samples(
            loaded.model,
            loaded.folder,
            execution_of(settings),
            shapes=dict(settings.input_shapes),
            hints=Hints(sizes=sizes_from_weights(index), ends=ends_of_ids(index)),
            seed=settings.seed,
        )
    except RunError as e:
        return str(e)


def execution_of(settings: Settings | MergeSettings) -> Execution:
    """Say how onnxruntime is to run the models."""
    return Execution(threads=settings.threads, provider=settings.provider)


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
    sites = [layer.site for layer in survey.found if layer.site.scope == 0]
    sites = [site for site in sites if operator_of(index.node(site)) is not None]
    unknown = [site for site in sites if site not in work or work[site].inputs is None]
    if not unknown or isinstance(samples, str):
        return shapes
    model, folder = survey.loaded.model, survey.loaded.folder
    nodes, execution = [index.node(site) for site in unknown], execution_of(settings)
    named = {name for node in nodes for name in (*node.input[:2], *node.output[:1])}
    names = {name for name in named if name and index.resolve(0, name)}
    try:
        shapes |= measured_shapes(model, folder, execution, samples.feeds[0], names)
    except RunError as e:
        _log.info("some shapes stay unknown: %s", e)
    return shapes


def check(
    survey: Survey,
    model: ModelProto,
    decompositions: Sequence[Decomposition],
    samples: Samples | str,
    settings: Settings,
) -> Verification:
    """Check the compressed model; a VerificationError if the rewrite is not exact."""
    if isinstance(samples, str):
        return Verification(status=Status.NOT_VALIDATED, reason=samples)
    loaded = survey.loaded
    spill = Spill() if is_large(loaded.model) else None
    replacements = [one.replacement for one in decompositions]

    def composed(chosen: Sequence[Replacement | None]) -> Callable[[], ModelProto] | None:
        found = [one for one in chosen if one is not None]
        if not found or len(found) < len(chosen):
            return None
        return lambda: with_composed_weights(loaded.model, found, spill)

    models = Candidates(
        original=loaded.model,
        compressed=model,
        composed=with_composed_weights(loaded.model, replacements, spill),
        layers=_outputs_of_main_graph(survey.index, replacements),
        folder=loaded.folder,
        half=composed([one.half for one in decompositions]),
        kept=composed([one.kept for one in decompositions]),
    )
    types = {r.layers[0].source.tensor.data_type for r in replacements}
    return verified(models, samples, types, settings)


def verified(
    models: Candidates,
    samples: Samples,
    types: Collection[int],
    settings: Settings | MergeSettings,
) -> Verification:
    """Compare models whose new weights are of some element types.

    If they differ by more than rounding, that is a VerificationError.
    """
    tolerance = max((TOLERANCES[kind] for kind in types), default=0.0)
    result = verify(models, samples, execution_of(settings), tolerance)
    if result.status is Status.FAILED:
        raise VerificationError(
            f"verification failed, nothing was written: {result.reason}; please report this"
        )
    return result


def _outputs_of_main_graph(
    index: ModelIndex, replacements: Sequence[Replacement]
) -> tuple[str, ...]:
    sites = [layer.site for replacement in replacements for layer in replacement.layers]
    return tuple(first_output(index.node(site)) for site in sites if site.scope == 0)
