"""The public functions: everything that the command does, without files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from alds_onnx.calibrate.reader import Calibration
from alds_onnx.cuts import Scheme
from alds_onnx.evaluate.scores import Evaluation
from alds_onnx.evaluate.sessions import Provider
from alds_onnx.graph.files.save import check_output, write_model
from alds_onnx.graph.files.spill import Spill
from alds_onnx.pipeline import Compressed, run, run_sweep
from alds_onnx.runtimes import Runtime
from alds_onnx.settings import (
    Measuring,
    MergeSettings,
    Progress,
    Settings,
    default_threads,
    silent,
)
from alds_onnx.steps.merge import MergeReport, run_merge
from alds_onnx.values import Objective, Plan, Report, SearchMethod


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Product:
    """A model that was made from another.

    Attributes
    ----------
    model
        The new model. If the original has external data, its tensors still point there, and the
        new weights of one over 1 GiB into a temporary file: write it with `save`, which copies
        them.
    folder
        Where external data lies.
    source
        Path of the original; None if it was given as an object.
    spill
        Keeps the temporary file with new weights of a large model alive; None for others.
    """

    model: ModelProto
    folder: Path
    source: Path | None
    spill: Spill | None = None

    def save(self, path: str | os.PathLike[str], *, external_data: bool = False) -> None:
        """Write the model, whole or not at all; external tensors go to one file beside it.

        Parameters
        ----------
        path
            Of the model file; that of its data is made from it.
        external_data
            Whether initializers of 1 KiB or more go to the data file too; those of a model that
            would be over 2 GiB do so anyway.

        Raises
        ------
        UsageError, InputError
            If `path` is the original, or cannot be written.
        """
        target = Path(path)
        check_output(target, self.source)
        write_model(self.model, target, self.folder, self.source, external=external_data)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result(Product):
    """A compressed model and what is known about it.

    Attributes
    ----------
    plan
        What was decided for each node whose operator can be decomposed.
    report
        What was measured.
    """

    plan: Plan
    report: Report


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MergeResult(Product):
    """A model with its pairs joined to dense layers again; `report` says which, and why not."""

    report: MergeReport


def compress(
    model: str | os.PathLike[str] | ModelProto,
    *,
    cr: float | None = None,
    cr_macs: float | None = None,
    latency_ratio: float | None = None,
    calibration: Calibration | None = None,
    objective: Objective | None = None,
    plan: Plan | None = None,
    max_error: float | None = None,
    max_drop: float | None = None,
    evaluate: Evaluation | None = None,
    search: SearchMethod = SearchMethod.EXACT,
    target: Runtime = Runtime.ORT,
    schemes: Sequence[Scheme] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    measuring: Measuring = Measuring.NEVER,
    allow_slower: bool = False,
    timings: str | os.PathLike[str] | None = None,
    remeasure: bool = False,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    threads: int | None = None,
    provider: Provider = Provider.CPU,
    dry_run: bool = False,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Result:
    """Compress a trained ONNX model by low-rank decomposition (ALDS).

    Every Conv, ConvTranspose, Gemm and MatMul with a constant weight may be cut into k channel
    slices of rank j (Liebenwein et al., "Compressing Neural Networks: Towards Determining the
    Optimal Layer-wise Decomposition", NeurIPS 2021). k and j of all layers are chosen so that the
    largest relative error is as small as the budget allows; the rest of the model stays as it is.

    Parameters
    ----------
    model
        Path of a model file, or a model; neither is changed.
    cr
        Fraction of the model's parameters to remove, between 0 and 1. Give one of this, `plan`,
        `max_error` and `max_drop`; or the next two, which may come together with each other and
        with this.
    cr_macs
        Fraction of the multiply-accumulates of one run to remove, of all nodes that have
        a row in the plan and whose shapes are known.
    latency_ratio
        Part of the time of one run in onnxruntime on this machine that may be left, such as 0.6;
        measured with the whole model, and missed by a few percent of itself. The slices and ranks
        are those of `target`, or of `ORT` if that is `NONE`.
    calibration
        Real inputs without labels, a few hundred if possible; see
        `alds_onnx.calibrate.reader.read_feeds`. Ranks are then chosen by measured errors of the
        model's outputs, and factors fitted to the data, which keeps far more accuracy than the
        weights alone can.
    objective
        With `calibration`: whether the sum (default) or the maximum of the output errors that the
        layers cause is made small.
    plan
        Cuts to apply exactly, from `read_plan` or an earlier result.
    max_error
        Remove as much as possible while the relative L2 error of every output is at most this. With
        `calibration` it is measured on every fifth run of the data, set aside before anything is
        fitted; without, on random inputs.
    max_drop
        Remove as much as possible while top-1 falls by at most so many percentage points on the
        data of `evaluate`; or what the function there returns, by at most this.
    evaluate
        What to score both models by: an .npz with arrays named by input and the integers `labels`,
        the same as a mapping, or a function. That gets a function which runs a model, from
        {input name: array} to the list of the outputs, and returns a number, higher is better.
    search
        `exact` finds the global optimum; `iterative` is Algorithm 1 of the paper.
    target
        What will run the model: only slices and ranks that it is fast at are chosen. `ORT` is
        onnxruntime on this machine's processor, `NONE` allows all, as in the paper. A plan is
        applied whatever this is.
    schemes
        What a convolution may become; the search chooses for each layer. Others than `ENCODE` go
        with `exact`, and without `calibration` and `latency_ratio`. Default: all where they go and
        `target` is not `NONE`, else `ENCODE`.
    include, exclude
        Globs on layer names: which layers may be decomposed.
    measuring
        Whether cuts are timed in onnxruntime on this machine, each layer on its own, so that none
        is chosen that is slower than the layer. The result then depends on the machine and on
        chance. A plan, and what `iterative` chooses, is not timed.
    allow_slower
        With `measuring`: only say which cuts are slower.
    timings, remeasure
        A file that times are kept in for other runs; whether to measure again what it holds.
    input_shapes
        Shapes of graph inputs with free sizes, by name.
    seed
        Of the random starts of `iterative` and of random inputs.
    threads
        Default: all processors. The result does not depend on it.
    provider
        onnxruntime's execution provider for the checks.
    dry_run
        Whether to skip the checks by onnxruntime, and scores that `max_drop` does not need.
    cache
        A folder for error curves and measurements on data, by what they depend on: another run on
        the same model and data starts at the search.
    progress
        Called as the work goes on.

    Raises
    ------
    UsageError, ModelError, PlanError, DataError, BudgetError
        If an argument makes no sense or cannot be used.
    TargetError
        If no compression stays within `max_error` or `max_drop`.
    VerificationError
        If the rewritten model does not compute what it should.

    Examples
    --------
    >>> import alds_onnx
    >>> result = alds_onnx.compress("models/digits.onnx", cr=0.5)
    >>> result.plan.removed >= 0.5
    True
    """
    settings = Settings(
        cr=cr,
        cr_macs=cr_macs,
        latency_ratio=latency_ratio,
        plan=plan,
        max_error=max_error,
        max_drop=max_drop,
        search=search,
        seed=seed,
        runtime=target,
        schemes=None if schemes is None else tuple(schemes),
        include=tuple(include),
        exclude=tuple(exclude),
        calibration=calibration,
        evaluate=evaluate,
        objective=objective or _default_objective(calibration),
        measuring=measuring,
        allow_slower=allow_slower,
        timings=Path(timings) if timings is not None else None,
        remeasure=remeasure,
        input_shapes=_shapes(input_shapes),
        threads=threads if threads is not None else default_threads(),
        provider=provider,
        dry_run=dry_run,
        cache=None if cache is None else Path(cache),
    )
    return _result(run(model, settings, progress))


def sweep(
    model: str | os.PathLike[str] | ModelProto,
    ratios: Sequence[float],
    *,
    calibration: Calibration | None = None,
    objective: Objective | None = None,
    evaluate: Evaluation | None = None,
    search: SearchMethod = SearchMethod.EXACT,
    target: Runtime = Runtime.ORT,
    schemes: Sequence[Scheme] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    threads: int | None = None,
    provider: Provider = Provider.CPU,
    dry_run: bool = False,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> Iterator[Result]:
    """Compress a model by several ratios; weights and data are looked at once.

    With `calibration`, each point is fitted once; `compress` chooses its ranks a second time after
    that, and is a little better. Cuts are not timed.

    Parameters
    ----------
    model
        Path of a model file, or a model; neither is changed.
    ratios
        Fractions of the parameters to remove, each between 0 and 1. Those out of reach are left
        out, unless all are.
    calibration, objective, evaluate, search, target, schemes, include, exclude, input_shapes
        As for `compress`.
    seed, threads, provider, dry_run, cache, progress
        As for `compress`.

    Yields
    ------
    A result for each ratio, in this order. `make_sweep` compares their reports.

    Raises
    ------
    UsageError, ModelError, DataError, BudgetError, VerificationError
        As `compress`.

    Examples
    --------
    >>> import alds_onnx
    >>> results = list(alds_onnx.sweep("models/digits.onnx", [0.2, 0.5], dry_run=True))
    >>> [result.plan.removed >= cr for result, cr in zip(results, [0.2, 0.5])]
    [True, True]
    """
    settings = Settings(
        sweep=tuple(ratios),
        search=search,
        seed=seed,
        runtime=target,
        schemes=None if schemes is None else tuple(schemes),
        include=tuple(include),
        exclude=tuple(exclude),
        calibration=calibration,
        evaluate=evaluate,
        objective=objective or _default_objective(calibration),
        input_shapes=_shapes(input_shapes),
        threads=threads if threads is not None else default_threads(),
        provider=provider,
        dry_run=dry_run,
        cache=None if cache is None else Path(cache),
    )
    return map(_result, run_sweep(model, settings, progress))


def _result(done: Compressed) -> Result:
    return Result(
        model=done.model,
        plan=done.plan,
        report=done.report,
        folder=done.source.folder,
        source=done.source.path,
        spill=done.spill,
    )


def merge(
    model: str | os.PathLike[str] | ModelProto,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    threads: int | None = None,
    provider: Provider = Provider.CPU,
    dry_run: bool = False,
    progress: Progress = silent,
) -> MergeResult:
    """Join the pairs of a compressed model to dense layers again.

    The merged model computes what the compressed one does, to rounding: in the layers that had been
    cut it has the approximation Ŵ as a dense weight, under the old name. Train that elsewhere, or
    compress it again. Pairs are known by the names and the structure that `compress` gives them;
    everything else stays as it is.

    Parameters
    ----------
    model
        Path of a model file, or a model; neither is changed.
    input_shapes, seed, threads, provider, dry_run, progress
        As for `compress`.

    Raises
    ------
    UsageError, ModelError
        If an argument makes no sense or cannot be used.
    VerificationError
        If the merged model does not compute what the compressed one does.

    Examples
    --------
    >>> import alds_onnx
    >>> half = alds_onnx.compress("models/digits.onnx", cr=0.5)
    >>> dense = alds_onnx.merge(half.model)
    >>> dense.report.parameters_after == half.plan.parameters
    True
    """
    settings = MergeSettings(
        input_shapes=_shapes(input_shapes),
        seed=seed,
        threads=threads if threads is not None else default_threads(),
        provider=provider,
        dry_run=dry_run,
    )
    done = run_merge(model, settings, progress)
    return MergeResult(
        model=done.model,
        report=done.report,
        folder=done.source.folder,
        source=done.source.path,
        spill=done.spill,
    )


def _shapes(
    input_shapes: Mapping[str, Sequence[int]] | None,
) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, tuple(sizes)) for name, sizes in (input_shapes or {}).items())


def _default_objective(calibration: Calibration | None) -> Objective:
    if calibration is None:
        return Objective.MAX_RELATIVE_ERROR
    return Objective.SUM_OUTPUT_ERROR
