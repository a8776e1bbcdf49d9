"""What the functions take, made of the groups in `options`, and what a run takes: that, checked.

`CompressOptions`, `SweepOptions` and `MergeOptions` are what a user gave. A run gets `Settings` or
`MergeSettings`, which hold the same values and refuse those that make no sense together. Nothing
is altered after that.
"""

from __future__ import annotations

from dataclasses import dataclass

from alds_onnx.cuts import Scheme
from alds_onnx.errors import UsageError
from alds_onnx.options.amount import Amount, Model, Ratios, Source, check_fraction
from alds_onnx.options.choice import Measuring, Search, Selection, Timing
from alds_onnx.options.run import Data, Execution, Progress, Reuse, Step
from alds_onnx.runtimes import Runtime, preset
from alds_onnx.search.alignment import Alignment
from alds_onnx.values import Objective, SearchMethod

__all__ = [
    "CompressOptions",
    "Measuring",
    "MergeOptions",
    "MergeSettings",
    "Progress",
    "Settings",
    "Source",
    "Step",
    "SweepOptions",
]

# Fields of a dataclass come from its bases in reverse order: the last base is the first group in
# the signature, and the first one that is checked.


@dataclass(kw_only=True, eq=False)
class _Compression(Execution, Reuse, Data, Selection, Timing, Search, Amount):
    """How to compress a model once."""


@dataclass(kw_only=True, eq=False)
class CompressOptions(_Compression, Model):
    """What `compress` takes."""


@dataclass(kw_only=True, eq=False)
class SweepOptions(Execution, Reuse, Data, Selection, Search, Ratios, Model):
    """What `sweep` takes."""


@dataclass(kw_only=True, eq=False)
class MergeOptions(Execution, Model):
    """What `merge` takes."""


@dataclass(kw_only=True, eq=False)
class MergeSettings(Execution):
    """The options of a merge, checked."""

    def __post_init__(self) -> None:
        self.check()


@dataclass(kw_only=True, eq=False)
class Settings(_Compression):
    """The options of one compression or sweep, checked.

    `sweep` holds the ratios of a sweep, a model for each; `()` stands for a single compression.
    """

    sweep: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuse options that make no sense together, or alone."""
        self._check_how_far()
        super().check()
        self._check_search()
        if self.max_drop is not None and self.evaluate is None:
            raise UsageError("--max-drop is about scores: give labelled samples with --evaluate")
        self._check_schemes()
        if self.plan is not None and (self.include or self.exclude):
            raise UsageError("--include and --exclude do not go with --plan: edit the plan instead")

    @property
    def alignment(self) -> Alignment:
        """The rule that `target` stands for; for a budget of time, onnxruntime's if there is none.

        Tables of time are drawn for the slices and ranks that the runtime is fast at.
        """
        timed = self.latency_ratio is not None and self.target is Runtime.NONE
        return Alignment(preset=preset(Runtime.ORT if timed else self.target))

    @property
    def candidates(self) -> tuple[Scheme, ...]:
        """The schemes to choose from: by default all where a target restricts the slices.

        With all slices and ranks, `ENCODE` has the smallest errors in nearly every layer, so that
        the others make no difference; without, they keep more accuracy (benchmarks/schemes.md).
        The iterative search is the paper's and knows `ENCODE` only.
        """
        if self.schemes is not None:
            return self.schemes
        if self.search is SearchMethod.EXACT and not self.alignment.is_free:
            return tuple(Scheme)
        return (Scheme.ENCODE,)

    def _check_how_far(self) -> None:
        others = (self.sweep or None, self.plan, self.max_error, self.max_drop)
        if sum(other is not None for other in others) + bool(self.budgets) != 1:
            raise UsageError(
                "say how far to compress: give one of --cr, --sweep, --plan, --max-error and "
                "--max-drop, or --cr-macs or --latency-ratio, which go together with each other "
                "and with --cr"
            )
        for cr in self.sweep:
            check_fraction("--sweep", cr, "the fraction of the parameters that is removed")

    def _check_search(self) -> None:
        if self.search is not SearchMethod.ITERATIVE:
            return
        if self.budgets not in ((), (self.cr,)):
            raise UsageError(
                "--search iterative knows parameters only: give --cr instead of --cr-macs and "
                "--latency-ratio, or use --search exact"
            )
        if self.objective is Objective.SUM_OUTPUT_ERROR:
            raise UsageError(
                "--search iterative makes the largest error small, not the sum: give --objective "
                "max with --calibration"
            )

    def _check_schemes(self) -> None:
        others = [scheme.value for scheme in self.schemes or () if scheme is not Scheme.ENCODE]
        if others and self.search is SearchMethod.ITERATIVE and self.plan is None:
            raise UsageError(
                "--search iterative is the paper's and knows the scheme 'encode' only: "
                f"leave it out, or '{others[0]}'"
            )
