"""Checks of the compressed model by onnxruntime, before anything is written.

Two questions, kept apart:

    exact       does the rewritten model compute what the original does with each W replaced by its
                approximation Ŵ, at its outputs and at the output of every decomposed layer? If not,
                there is a bug in the rewrite.
    fidelity    how far are its outputs from the original's? That is the price of the compression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto

from alds_onnx.evaluate.fidelity import Comparison
from alds_onnx.evaluate.latency import measure
from alds_onnx.evaluate.samples import Samples
from alds_onnx.evaluate.sessions import (
    Execution,
    Feeds,
    Outputs,
    RunError,
    Session,
    flatten,
)
from alds_onnx.graph.files.external import is_large
from alds_onnx.values import Status, Verification

#: Largest relative L2 difference of an output that counts as float rounding, by the coarsest
#: element type of the decomposed weights. Rounding errors of single operators, about 1e-7, 1e-3 and
#: 1e-2, grow through the layers behind them; a wrong rewrite is off by about 1.
TOLERANCES: Mapping[int, float] = {
    TensorProto.DOUBLE: 1e-9,
    TensorProto.FLOAT: 1e-4,
    TensorProto.FLOAT16: 2e-2,
    TensorProto.BFLOAT16: 1e-1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The models to compare.

    Attributes
    ----------
    original, compressed
        Before and after.
    composed
        The original with each W replaced by the dense Ŵ of its factors.
    layers
        Outputs of decomposed nodes, tensors of the main graph that all three models have.
    folder
        Where their external data lies.
    called
        What the user knows the compressed one as.
    floor
        Entries of the models' outputs below this count as this large. The layers' own do not.
    """

    original: ModelProto
    compressed: ModelProto
    composed: ModelProto
    layers: tuple[str, ...]
    folder: Path
    called: str = "the compressed model"
    floor: float = 0.0


def verify(
    models: Candidates, samples: Samples, execution: Execution, tolerance: float
) -> Verification:
    """Run the three models on the same inputs and compare.

    The outputs are kept, not the sessions: of a large model one is loaded at a time,
    and latency, which takes two side by side, is not measured.

    Parameters
    ----------
    models
        The original, the compressed one, and the original with each W replaced by Ŵ.
    samples
        What to run them on.
    execution
        Where and how to run them.
    tolerance
        Largest difference between the last two that counts as rounding; see `TOLERANCES`.

    Returns
    -------
    Failed if the rewrite is not exact or the compressed model does not run where the original does;
    not validated if the original does not run.
    """
    try:
        original = _run_original(models, samples, execution, tolerance)
    except RunError as e:
        return Verification(status=Status.NOT_VALIDATED, reason=f"the original: {e}")
    try:
        return _compare(models, samples, execution, tolerance, original)
    except RunError as e:
        return Verification(status=Status.FAILED, reason=f"{models.called}: {e}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Original:
    """The original, its outputs on all samples, and those that cannot be compared.

    Attributes
    ----------
    session
        For latency; None where it would take too much memory.
    """

    session: Session | None
    outputs: Sequence[Outputs]
    ignore: dict[str, str]


def _run_original(
    models: Candidates, samples: Samples, execution: Execution, tolerance: float
) -> _Original:
    session = Session(models.original, models.folder, execution)
    outputs = [session.run(feeds) for feeds in samples.feeds]
    again = session.run(samples.feeds[0])
    ignore = unsteady(session.output_names, outputs[0], again, tolerance)
    ignore |= overflowing(session.output_names, outputs)
    large = is_large(models.original)
    return _Original(session=None if large else session, outputs=outputs, ignore=ignore)


def unsteady(
    names: Sequence[str], first: Outputs, again: Outputs, tolerance: float
) -> dict[str, str]:
    """Find outputs that differ between two runs of the same model (random operators).

    Rounding may differ from run to run too, on a GPU: that is no reason not to compare.
    """
    comparison = Comparison(names)
    comparison.add(first, again)
    return {
        output.name: "differs from run to run of the original"
        for output in comparison.outputs()
        if output.relative_l2 > tolerance
    }


def overflowing(names: Sequence[str], outputs: Sequence[Outputs]) -> dict[str, str]:
    """Find outputs that overflow: whether a sum does depends on its order, which may change."""
    return {
        name: "not finite in the original"
        for run in outputs
        for name, output in zip(names, run, strict=True)
        for array in flatten(output)
        if array.dtype.kind == "f" and not np.isfinite(array).all()
    }


def _compare(
    models: Candidates,
    samples: Samples,
    execution: Execution,
    tolerance: float,
    original: _Original,
) -> Verification:
    expected = _outputs(models.composed, models, samples, execution)
    compressed = Session(models.compressed, models.folder, execution)
    exact = Comparison(compressed.output_names, original.ignore)
    fidelity = Comparison(compressed.output_names, original.ignore)
    runs = zip(samples.feeds, original.outputs, expected, strict=True)
    for feeds, outputs, composed in runs:
        actual = compressed.run(feeds)
        exact.add(composed, actual)
        fidelity.add(outputs, actual)
    before = after = None
    if original.session is not None:
        before, after = measure(original.session, compressed, samples.feeds[0])
    del compressed
    layers = _difference_at_layers(models, samples.feeds[0], execution, tolerance)
    difference = max(exact.difference(fidelity, models.floor), layers)
    passed = difference <= tolerance
    reason = "" if passed else f"outputs differ by {difference:.2g}, allowed are {tolerance:.2g}"
    return Verification(
        status=Status.PASSED if passed else Status.FAILED,
        reason=reason,
        difference=difference,
        tolerance=tolerance,
        fidelity=fidelity.outputs(),
        samples=sum(_batch_size(feeds) for feeds in samples.feeds),
        random_inputs=samples.random,
        latency_before=before,
        latency_after=after,
        threads=execution.threads,
        input_shapes=tuple((name, array.shape) for name, array in samples.feeds[0].items()),
    )


def _outputs(
    model: ModelProto, models: Candidates, samples: Samples, execution: Execution
) -> list[Outputs]:
    """Outputs on all samples; the session goes before the next one comes."""
    session = Session(model, models.folder, execution)
    return [session.run(feeds) for feeds in samples.feeds]


def _batch_size(feeds: Feeds) -> int:
    first = next(iter(feeds.values()), None)
    return int(first.shape[0]) if first is not None and first.ndim else 1


def _difference_at_layers(
    models: Candidates, feeds: Feeds, execution: Execution, tolerance: float
) -> float:
    """Largest difference at the outputs of decomposed layers, made graph outputs for one run."""
    if not models.layers:
        return 0.0

    def probe(model: ModelProto, runs: int = 1) -> list[Outputs]:
        session = Session(_with_outputs(model, models.layers), models.folder, execution)
        return [session.run(feeds, models.layers) for _ in range(runs)]

    original, again = probe(models.original, runs=2)
    (expected,), (actual,) = probe(models.composed), probe(models.compressed)
    ignore = unsteady(models.layers, original, again, tolerance)
    ignore |= overflowing(models.layers, [original, expected])
    exact, reference = Comparison(models.layers, ignore), Comparison(models.layers)
    exact.add(expected, actual)
    reference.add(original, expected)
    return exact.difference(reference)


def _with_outputs(model: ModelProto, names: Sequence[str]) -> ModelProto:
    result = ModelProto()
    result.CopyFrom(model)
    present = {output.name for output in result.graph.output}
    result.graph.output.extend(ValueInfoProto(name=n) for n in names if n not in present)
    return result
