"""Merging: join the pairs of a compressed model, check the result, and report it."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import ModelProto

from alds_onnx.cuts import Cut
from alds_onnx.evaluate.sessions import check_provider
from alds_onnx.evaluate.verify import Candidates
from alds_onnx.graph.accounting import model_bytes, num_parameters
from alds_onnx.graph.files.external import Spill, spill_for
from alds_onnx.graph.files.load import LoadedModel, load_model
from alds_onnx.graph.merge import Merging, merge_pairs
from alds_onnx.graph.pairs import Pair, Unmerged
from alds_onnx.graph.scopes import ModelIndex
from alds_onnx.results import Status, Verification
from alds_onnx.settings import MergeSettings, Progress, Source, Step
from alds_onnx.steps.checks import random_inputs, verified
from alds_onnx.steps.clock import Clock

# A model compressed too far may end in a sigmoid of 1e-8, whose rounding error is 6e-8, that of a
# number near 1. This floor, with the tolerance for float32, allows so much.
_FLOOR = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedLayer:
    """A pair that became a dense layer.

    Attributes
    ----------
    name, weight
        Names of the layer and of its new weight.
    shape
        Shape of the weight, folded to (f, c) or (f, c, kh, kw).
    cut
        The scheme, the number of slices and the ranks of the pair.
    parameters_before, parameters_after
        Numbers of entries of the factors and of the dense weight. Layers that share a weight give
        the same numbers.
    """

    name: str
    weight: str
    shape: tuple[int, ...]
    cut: Cut
    parameters_before: int
    parameters_after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport:
    """The results of a merge.

    Attributes
    ----------
    file, sha256
        The given model.
    merged, left
        The joined pairs, and the nodes that look like a pair of this package but were not joined.
    parameters_before, parameters_after
        Floating-point parameters of the whole model.
    bytes_before, bytes_after
        Sizes of the models, external data included.
    verification
        Comparison of the merged model with the given one; None for a dry run.
    seconds
        Wall time of each step, in order.
    warnings
        Messages for the user.
    """

    file: str
    sha256: str
    merged: tuple[MergedLayer, ...]
    left: tuple[Unmerged, ...]
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    verification: Verification | None
    seconds: tuple[tuple[str, float], ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Merged:
    """The merged model, its report, the given model, and the file of large new weights."""

    model: ModelProto
    report: MergeReport
    source: LoadedModel
    spill: Spill | None


def run_merge(source: Source, settings: MergeSettings, progress: Progress) -> Merged:
    """Join the pairs of a model; see `alds_onnx.merge`."""
    clock = Clock(progress)
    check_provider(settings.provider)
    clock.start(Step.LOAD)
    loaded = load_model(source)
    clock.start(Step.MERGE)
    spill = spill_for(loaded.model)
    merging = merge_pairs(loaded.model, loaded.folder, spill)
    clock.start(Step.VERIFY)
    verification = None if settings.dry_run else _check(loaded, merging, settings)
    clock.stop()
    report = _report(loaded, merging, verification, clock)
    return Merged(model=merging.model, report=report, source=loaded, spill=spill)


def _check(loaded: LoadedModel, merging: Merging, settings: MergeSettings) -> Verification:
    """Compare the merged model with the given one, on random inputs: they should be equal."""
    samples = random_inputs(loaded, ModelIndex(loaded.model), settings)
    if isinstance(samples, str):
        return Verification(status=Status.NOT_VALIDATED, reason=samples)
    models = Candidates(
        original=loaded.model,
        compressed=merging.model,
        composed=loaded.model,
        layers=_outputs_of_main_graph(loaded.model, merging.pairs),
        folder=loaded.folder,
        called="the merged model",
        floor=_FLOOR,
    )
    return verified(models, samples, {pair.element_type for pair in merging.pairs}, settings)


def _outputs_of_main_graph(model: ModelProto, pairs: tuple[Pair, ...]) -> tuple[str, ...]:
    """List the outputs of joined layers that exist in both models."""
    made = {name for node in model.graph.node for name in node.output}
    names = (pair.output for pair in pairs if pair.site.scope == 0)
    return tuple(dict.fromkeys(name for name in names if name in made))


def _report(
    loaded: LoadedModel, merging: Merging, verification: Verification | None, clock: Clock
) -> MergeReport:
    return MergeReport(
        file=loaded.name,
        sha256=loaded.sha256,
        merged=tuple(_row(pair) for pair in merging.pairs),
        left=merging.left,
        parameters_before=num_parameters(ModelIndex(loaded.model)),
        parameters_after=num_parameters(ModelIndex(merging.model)),
        bytes_before=model_bytes(loaded.model),
        bytes_after=model_bytes(merging.model),
        verification=verification,
        seconds=clock.seconds(),
        warnings=tuple(_warnings(merging, verification)),
    )


def _row(pair: Pair) -> MergedLayer:
    shape = pair.layout.shape
    return MergedLayer(
        name=pair.name,
        weight=pair.weight,
        shape=(shape.out_features, shape.in_channels, *shape.kernel),
        cut=pair.cut,
        parameters_before=pair.cut.num_parameters(shape),
        parameters_after=shape.num_parameters,
    )


def _warnings(merging: Merging, verification: Verification | None) -> list[str]:
    warnings = []
    if not merging.pairs:
        warnings.append(
            "no pair of layers has the names of nodes and factors that alds-onnx writes: "
            "the model is unchanged"
        )
    warnings += [f"'{left.name}' stays as it is: {left.reason}" for left in merging.left]
    if verification is not None and verification.status is Status.NOT_VALIDATED:
        warnings.append(f"not validated: {verification.reason}")
    return warnings
