"""Checks of the compressed model with onnxruntime, before anything is written.

They answer two separate questions:

    exact       Does the rewritten model equal the original in which each W is replaced by its
                approximation Ŵ, at its outputs and at the output of every decomposed layer? If not,
                the rewrite has a bug.
    fidelity    How much do its outputs differ from those of the original? This difference is the
                price of the compression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

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
    batch_size,
    flatten,
)
from alds_onnx.graph.files.external import is_large
from alds_onnx.values import Status, Verification

#: Largest relative L2 difference of an output that counts as float rounding, by the coarsest
#: element type of the decomposed weights. Rounding errors of single operators, about 1e-7, 1e-3 and
#: 1e-2, grow through the layers downstream; a wrong rewrite is off by about 1.
TOLERANCES: Mapping[int, float] = {
    TensorProto.DOUBLE: 1e-9,
    TensorProto.FLOAT: 1e-4,
    TensorProto.FLOAT16: 2e-2,
    TensorProto.BFLOAT16: 1e-1,
}


# The session of the original, to measure latency (None if two sessions would take too much memory),
# its outputs on all samples, and reasons why some cannot be compared.
_Original: TypeAlias = "tuple[Session | None, list[Outputs], dict[str, str]]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The models to compare, with external data in `folder`.

    `composed` is the original with each W replaced by the product Ŵ of its factors. `layers` are
    outputs of decomposed nodes: tensors of the main graph that all three models have. An entry of a
    model output counts as at least `floor` in magnitude; layer outputs have no such limit. Messages
    say `called` for the compressed model.
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
    """Run the three models on the same inputs and compare their outputs.

    The status is failed if the rewrite is not exact to `tolerance` (see `TOLERANCES`), or if only
    the original runs. It is not validated if the original does not run. For a large model, only one
    session is open at a time. Latency is then not measured, because it needs two.
    """
    try:
        original = _run_original(models, samples, execution, tolerance)
    except RunError as e:
        return Verification(status=Status.NOT_VALIDATED, reason=f"the original: {e}")
    try:
        return _compare(models, samples, execution, tolerance, original)
    except RunError as e:
        return Verification(status=Status.FAILED, reason=f"{models.called}: {e}")


def _run_original(
    models: Candidates, samples: Samples, execution: Execution, tolerance: float
) -> _Original:
    session = Session(models.original, models.folder, execution)
    outputs = [session.run(feeds) for feeds in samples.feeds]
    again = session.run(samples.feeds[0])
    ignore = incomparable(session.output_names, outputs, again, tolerance)
    return None if is_large(models.original) else session, outputs, ignore


def incomparable(
    names: Sequence[str], runs: Sequence[Outputs], again: Outputs, tolerance: float
) -> dict[str, str]:
    """Find outputs that cannot be compared, and say why.

    Because of random operators, some differ between the first run and the same one `again`;
    differences of rounding, which occur on a GPU, do not count. Others overflow in a run, which may
    depend on the order of a sum.
    """
    comparison = Comparison(names)
    comparison.add(runs[0], again)
    unsteady = {
        output.name: "differs from run to run of the original"
        for output in comparison.outputs()
        if output.relative_l2 > tolerance
    }
    return unsteady | {
        name: "not finite in the original"
        for run in runs
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
    session, original_outputs, ignore = original
    expected = _outputs(models.composed, models, samples, execution)
    compressed = Session(models.compressed, models.folder, execution)
    exact = Comparison(compressed.output_names, ignore)
    fidelity = Comparison(compressed.output_names, ignore)
    for feeds, outputs, composed in zip(samples.feeds, original_outputs, expected, strict=True):
        actual = compressed.run(feeds)
        exact.add(composed, actual)
        fidelity.add(outputs, actual)
    before = after = None
    if session is not None:
        before, after = measure(session, compressed, samples.feeds[0])
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
        samples=sum(batch_size(feeds) for feeds in samples.feeds),
        random_inputs=samples.random,
        latency_before=before,
        latency_after=after,
        threads=execution.threads,
        input_shapes=tuple(samples.shapes.items()),
    )


def _outputs(
    model: ModelProto, models: Candidates, samples: Samples, execution: Execution
) -> list[Outputs]:
    """Give the outputs on all samples, and close the session."""
    session = Session(model, models.folder, execution)
    return [session.run(feeds) for feeds in samples.feeds]


def _difference_at_layers(
    models: Candidates, feeds: Feeds, execution: Execution, tolerance: float
) -> float:
    """Give the largest difference at the decomposed layers, made graph outputs for one run."""
    if not models.layers:
        return 0.0

    def probe(model: ModelProto, runs: int = 1) -> list[Outputs]:
        session = Session(_with_outputs(model, models.layers), models.folder, execution)
        return [session.run(feeds, models.layers) for _ in range(runs)]

    original, again = probe(models.original, runs=2)
    (expected,), (actual,) = probe(models.composed), probe(models.compressed)
    ignore = incomparable(models.layers, [original, expected], again, tolerance)
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
