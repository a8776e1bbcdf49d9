"""Checks of the compressed model with onnxruntime, before anything is written.

They answer two separate questions:

    exact       Does the rewritten model equal the original in which each W is replaced by its
                approximation Ŵ, at its outputs and at the output of every decomposed layer? If not,
                the rewrite has a bug.
    fidelity    How much do its outputs differ from those of the original? This difference is the
                price of the compression.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, ValueInfoProto

from alds_onnx.evaluate.fidelity import Comparison
from alds_onnx.evaluate.latency import measure
from alds_onnx.evaluate.samples import Kind, Samples
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
from alds_onnx.results import (
    LearningCurve,
    LearningPoint,
    LeftOut,
    OutputFidelity,
    Status,
    Verification,
    WorstKind,
    output_error,
)

#: Largest relative L2 difference of an output that counts as float rounding, by the coarsest
#: element type of the decomposed weights. Rounding errors of single operators, about 1e-7, 1e-3 and
#: 1e-2, grow through the layers downstream; a wrong rewrite is off by about 1.
TOLERANCES: Mapping[int, float] = {
    TensorProto.DOUBLE: 1e-9,
    TensorProto.FLOAT: 1e-4,
    TensorProto.FLOAT16: 2e-2,
    TensorProto.BFLOAT16: 1e-1,
}


# Largest number of runs on which the rewrite is checked to be exact, which takes a third model.
_MOST_EXACT_RUNS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """The models to compare, with external data in `folder`.

    `composed` is the original with each W replaced by the product Ŵ of its factors. `layers` are
    outputs of decomposed nodes: tensors of the main graph that all three models have. An entry of a
    model output counts as at least `floor` in magnitude; layer outputs have no such limit. Messages
    say `called` for the compressed model.

    `half` makes the model with factors fitted to half of the samples, `kept` the one with factors
    fitted without the kinds of inputs that the samples leave out; None where there is none.
    """

    original: ModelProto
    compressed: ModelProto
    composed: ModelProto
    layers: tuple[str, ...]
    folder: Path
    called: str = "the compressed model"
    floor: float = 0.0
    half: Callable[[], ModelProto] | None = None
    kept: Callable[[], ModelProto] | None = None


class _OriginalError(RunError):
    """The original cannot be run."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Original:
    """The original, and its outputs on the samples, those left out last.

    The outputs of the first runs are kept, by the number of the run. The session is None if two
    would take too much memory; then those of all runs are kept. The outputs in `unsteady` cannot be
    compared, for the reasons there.
    """

    feeds: tuple[Feeds, ...]
    session: Session | None
    kept: Mapping[int, Outputs]
    unsteady: Mapping[str, str]

    def run(self, number: int) -> Outputs:
        """Give the outputs of a run."""
        if number in self.kept:
            return self.kept[number]
        assert self.session is not None
        try:
            return self.session.run(self.feeds[number])
        except RunError as e:
            raise _OriginalError(str(e)) from e


def verify(
    models: Candidates, samples: Samples, execution: Execution, tolerance: float
) -> Verification:
    """Run the three models on the same inputs and compare their outputs.

    The status is failed if the rewrite is not exact to `tolerance` (see `TOLERANCES`), or if only
    the original runs. It is not validated if the original does not run. Exactness is measured on
    the first runs, fidelity on all, and once more on the samples left out. For a large model, only
    one session is open at a time. Latency is then not measured, because it needs two.
    """
    try:
        original = _open_original(models, samples, execution, tolerance)
        return _compare(models, samples, execution, tolerance, original)
    except _OriginalError as e:
        return Verification(status=Status.NOT_VALIDATED, reason=f"the original: {e}")
    except RunError as e:
        return Verification(status=Status.FAILED, reason=f"{models.called}: {e}")


def _open_original(
    models: Candidates, samples: Samples, execution: Execution, tolerance: float
) -> _Original:
    others = (feeds for kind in samples.left_out for feeds in kind.feeds)
    feeds, large = (*samples.feeds, *others), is_large(models.original)
    count = len(feeds) if large else min(len(samples.feeds), _MOST_EXACT_RUNS)
    try:
        session = Session(models.original, models.folder, execution)
        kept = {number: session.run(feeds[number]) for number in range(count)}
        again = session.run(feeds[0])
    except RunError as e:
        raise _OriginalError(str(e)) from e
    return _Original(
        feeds=feeds,
        session=None if large else session,
        kept=kept,
        unsteady=_unsteady(session.output_names, kept[0], again, tolerance),
    )


def incomparable(
    names: Sequence[str], runs: Sequence[Outputs], again: Outputs, tolerance: float
) -> dict[str, str]:
    """Find outputs that cannot be compared, and say why.

    Because of random operators, some differ between the first run and the same one `again`;
    differences of rounding, which occur on a GPU, do not count. Others overflow in a run, which may
    depend on the order of a sum.
    """
    found = _unsteady(names, runs[0], again, tolerance)
    for run in runs:
        found |= _not_finite(names, run)
    return found


def _unsteady(
    names: Sequence[str], run: Outputs, again: Outputs, tolerance: float
) -> dict[str, str]:
    comparison = Comparison(names)
    comparison.add(run, again)
    return {
        output.name: "differs from run to run of the original"
        for output in comparison.outputs()
        if output.relative_l2 > tolerance
    }


def _not_finite(names: Sequence[str], run: Outputs) -> dict[str, str]:
    return {
        name: "not finite in the original"
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
    count = len(samples.feeds)
    composed = _outputs(models, samples.feeds[:_MOST_EXACT_RUNS], execution)
    compressed = Session(models.compressed, models.folder, execution)
    fidelity, at_outputs = _compare_outputs(models, original, compressed, range(count), composed)
    before = after = None
    if original.session is not None:
        before, after = measure(original.session, compressed, samples.feeds[0])
    del compressed
    left_out = _left_out(models, samples, original, execution)
    learning = _learning(models, samples, original, execution, fidelity)
    layers = _difference_at_layers(models, samples.feeds[0], execution, tolerance)
    difference = max(at_outputs, layers)
    passed = difference <= tolerance
    reason = "" if passed else f"outputs differ by {difference:.2g}, allowed are {tolerance:.2g}"
    return Verification(
        status=Status.PASSED if passed else Status.FAILED,
        reason=reason,
        difference=difference,
        tolerance=tolerance,
        fidelity=fidelity,
        samples=_num_samples(samples.feeds),
        random_inputs=samples.random,
        held_out=samples.held_out,
        left_out=left_out,
        learning=learning,
        latency_before=before,
        latency_after=after,
        threads=execution.threads,
        input_shapes=tuple(samples.shapes.items()),
    )


def _compare_outputs(
    models: Candidates,
    original: _Original,
    compressed: Session,
    numbers: Sequence[int],
    composed: Sequence[Outputs] = (),
) -> tuple[tuple[OutputFidelity, ...], float]:
    """Compare the models run by run, so that no outputs need to be kept.

    Gives the fidelity over all runs with these numbers, and the largest difference from the
    outputs `composed`, which are those of the first of them.
    """
    names = compressed.output_names
    fidelity, exact, reference = (Comparison(names, original.unsteady) for _ in range(3))
    for number in numbers:
        feeds, expected = original.feeds[number], original.run(number)
        actual, odd = compressed.run(feeds), _not_finite(names, expected)
        fidelity.ignore(odd)
        fidelity.add(expected, actual, batch_size(feeds))
        if number < len(composed):
            exact.ignore(odd)
            exact.add(composed[number], actual)
            reference.add(expected, actual)
    return fidelity.outputs(), exact.difference(reference, models.floor)


def _left_out(
    models: Candidates, samples: Samples, original: _Original, execution: Execution
) -> LeftOut | None:
    """Measure fidelity on kinds of inputs, with factors that are fitted without these kinds."""
    if not samples.left_out or models.kept is None:
        return None
    session = Session(models.kept(), models.folder, execution)
    by_kind, number = [], len(samples.feeds)
    for kind in samples.left_out:
        own = Comparison(session.output_names, original.unsteady)
        for feeds in kind.feeds:
            expected, actual = original.run(number), session.run(feeds)
            own.ignore(_not_finite(session.output_names, expected))
            own.add(expected, actual, batch_size(feeds))
            number += 1
        by_kind.append((kind, own))
    return LeftOut(
        kinds=len(samples.left_out),
        samples=sum(_num_samples(kind.feeds) for kind in samples.left_out),
        fidelity=Comparison.of_groups([own for _, own in by_kind]).outputs(),
        worst=_worst(by_kind),
    )


def _worst(by_kind: Sequence[tuple[Kind, Comparison]]) -> WorstKind | None:
    found = [
        WorstKind(example=kind.example, samples=_num_samples(kind.feeds), output_error=error)
        for kind, comparison in by_kind
        if (error := output_error(comparison.outputs())) is not None
    ]
    return max(found, key=lambda kind: kind.output_error, default=None)


def _learning(
    models: Candidates,
    samples: Samples,
    original: _Original,
    execution: Execution,
    fidelity: Sequence[OutputFidelity],
) -> LearningCurve | None:
    """Compare with the model whose factors are fitted to half of the samples, if there are two."""
    if not samples.held_out or models.half is None or len(set(samples.num_fitted)) < 2:
        return None
    session = Session(models.half(), models.folder, execution)
    found, _ = _compare_outputs(models, original, session, range(len(samples.feeds)))
    errors = [output_error(fidelity) for fidelity in (found, fidelity)]
    if any(error is None or not np.isfinite(error) for error in errors):
        return None
    half, whole = (
        LearningPoint(samples=count, output_error=error or 0.0)
        for count, error in zip(samples.num_fitted, errors, strict=True)
    )
    return LearningCurve.of(half, whole)


def _num_samples(feeds: Sequence[Feeds]) -> int:
    return sum(batch_size(feed) for feed in feeds)


def _outputs(models: Candidates, runs: Sequence[Feeds], execution: Execution) -> list[Outputs]:
    """Give the outputs of the model with composed weights, and close its session."""
    session = Session(models.composed, models.folder, execution)
    return [session.run(feeds) for feeds in runs]


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
