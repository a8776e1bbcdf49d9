"""The public functions: everything that the command does, without files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from alds_onnx.graph.files.external import Spill
from alds_onnx.graph.files.save import check_output, write_model
from alds_onnx.options.declare import shared
from alds_onnx.options.document import takes
from alds_onnx.pipeline import run, run_sweep
from alds_onnx.settings import (
    CompressOptions,
    MergeOptions,
    MergeSettings,
    Settings,
    SweepOptions,
)
from alds_onnx.steps.finish import Compressed
from alds_onnx.steps.merge import MergeReport, run_merge
from alds_onnx.values import Plan, Report


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


@takes(CompressOptions)
def compress(options: CompressOptions) -> Result:
    """Compress a trained ONNX model by low-rank decomposition (ALDS).

    Every node of an operator that has a constant weight, such as Conv, Gemm or MatMul, may be cut
    into k channel slices of rank j (Liebenwein et al., "Compressing Neural Networks: Towards
    Determining the Optimal Layer-wise Decomposition", NeurIPS 2021). k and j of all layers are
    chosen so that the largest relative error is as small as the budget allows; the rest of the
    model stays as it is.

    Returns
    -------
    The compressed model, its plan, and a report.

    Raises
    ------
    UsageError, ModelError, PlanError, DataError, BudgetError
        If an argument makes no sense or cannot be used.
    LimitError
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
    settings = Settings(**shared(options, Settings))
    return _result(run(options.model, settings, settings.progress))


@takes(SweepOptions)
def sweep(options: SweepOptions) -> Iterator[Result]:
    """Compress a model by several ratios; weights and data are looked at once.

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
    settings = Settings(sweep=tuple(options.ratios), **shared(options, Settings))
    return map(_result, run_sweep(options.model, settings, settings.progress))


def _result(done: Compressed) -> Result:
    return Result(
        model=done.model,
        plan=done.plan,
        report=done.report,
        folder=done.source.folder,
        source=done.source.path,
        spill=done.spill,
    )


@takes(MergeOptions)
def merge(options: MergeOptions) -> MergeResult:
    """Join the pairs of a compressed model to dense layers again.

    The merged model computes what the compressed one does, to rounding: in the layers that had been
    cut it has the approximation Ŵ as a dense weight, under the old name. Train that elsewhere, or
    compress it again. Pairs are known by the names and the structure that `compress` gives them;
    everything else stays as it is.

    Returns
    -------
    The merged model, and a report on its pairs.

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
    settings = MergeSettings(**shared(options, MergeSettings))
    done = run_merge(options.model, settings, settings.progress)
    return MergeResult(
        model=done.model,
        report=done.report,
        folder=done.source.folder,
        source=done.source.path,
        spill=done.spill,
    )
