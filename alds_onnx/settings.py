"""What the user asks for, checked once at the door."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol, TypeAlias

from onnx import ModelProto

from alds_onnx.calibrate.reader import Calibration
from alds_onnx.errors import UsageError
from alds_onnx.evaluate.scores import Evaluation
from alds_onnx.evaluate.sessions import Provider
from alds_onnx.runtimes import Runtime, preset
from alds_onnx.search.alignment import Alignment
from alds_onnx.values import Objective, Plan, Scheme, SearchMethod

#: A model: the path of its file, or the model itself.
Source: TypeAlias = "str | os.PathLike[str] | ModelProto"


class Step(str, Enum):
    """The steps of a run, in order; `ATTEMPT` to `MEASURE` come again for every attempt."""

    LOAD = "load"
    SCORES = "scores"
    SPECTRA = "spectra"
    STATISTICS = "statistics"
    SENSITIVITY = "sensitivity"
    INPUTS = "inputs"
    MERGE = "merge"
    ATTEMPT = "attempt"
    SEARCH = "search"
    FACTORIZE = "factorize"
    MEASURE = "measure"
    VERIFY = "verify"
    DONE = "done"


class Progress(Protocol):
    """Called as the work goes on."""

    def __call__(self, step: Step, done: int, total: int) -> None:
        """`done` of `total` parts of a step; `total` 0 where it is not known."""


def silent(step: Step, done: int, total: int) -> None:
    """A progress that nobody sees."""


def default_threads() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_numbers(threads: int, seed: int) -> None:
    if threads < 1:
        raise UsageError(f"--threads is {threads}, but must be at least 1")
    if seed < 0:
        raise UsageError(f"--seed is {seed}, but must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeSettings:
    """Options of a merge; each as in `Settings`.

    Raises
    ------
    UsageError
        If a number makes no sense.
    """

    input_shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    seed: int = 0
    threads: int
    provider: Provider = Provider.CPU
    dry_run: bool = False

    def __post_init__(self) -> None:
        _check_numbers(self.threads, self.seed)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Settings:
    """Options of one run.

    Attributes
    ----------
    cr, sweep, plan, max_error, max_drop
        Exactly one is given. `cr`: fraction of the parameters to remove, in (0, 1). `sweep`:
        several of them, a model for each. `plan`: cuts to apply. The others: as much as possible,
        while the relative L2 error of every output is at most `max_error`, or the first score
        falls by at most `max_drop` (`targets.Score.drop`).
    search, seed
        How to choose ranks, and the seed of random starts and inputs.
    include, exclude
        Globs on layer names; no `include` means all.
    runtime
        What will run the model: which slices and ranks the search may choose. A plan is applied
        whatever this is.
    schemes
        What a convolution may become; None: what `candidates` says. A plan is applied whatever
        they are. Others than `ENCODE` go with the exact search on weights alone.
    calibration
        Real inputs to choose ranks and fit factors by; None: by the weights alone, and checks on
        random inputs.
    evaluate
        Labelled samples, or a function that scores a model; goes with `max_drop`.
    objective
        What the choice of ranks makes small; one of the two on outputs goes with `calibration`.
    input_shapes
        Shapes of graph inputs, by name.
    threads, provider
        Of the decomposition and of onnxruntime.
    dry_run
        Whether to stop before the checks.
    cache
        A folder that keeps error curves and measurements for other runs; None: nothing is kept.

    Raises
    ------
    UsageError
        If the options make no sense together.
    """

    cr: float | None = None
    sweep: tuple[float, ...] = ()
    plan: Plan | None = None
    max_error: float | None = None
    max_drop: float | None = None
    search: SearchMethod = SearchMethod.EXACT
    seed: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    runtime: Runtime = Runtime.NONE
    schemes: tuple[Scheme, ...] | None = None
    calibration: Calibration | None = None
    evaluate: Evaluation | None = None
    objective: Objective = Objective.MAX_RELATIVE_ERROR
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    threads: int
    provider: Provider = Provider.CPU
    dry_run: bool = False
    cache: Path | None = None

    def __post_init__(self) -> None:
        self._check_how_far()
        self._check_schemes()
        on_data = self.objective is not Objective.MAX_RELATIVE_ERROR
        if on_data and self.calibration is None:
            raise UsageError("--objective is about outputs on real inputs: give --calibration too")
        if self.plan is not None and (self.include or self.exclude):
            raise UsageError("--include and --exclude do not go with --plan: edit the plan instead")
        _check_numbers(self.threads, self.seed)

    @property
    def alignment(self) -> Alignment:
        """The rule that `runtime` stands for."""
        return Alignment(preset=preset(self.runtime))

    @property
    def candidates(self) -> tuple[Scheme, ...]:
        """The schemes to choose from: by default all where a runtime restricts the slices.

        With all slices and ranks, `ENCODE` has the smallest errors in nearly every layer, so that
        the others make no difference; without, they keep more accuracy (benchmarks/schemes.md).
        """
        if self.schemes is not None:
            return self.schemes
        on_weights = self.calibration is None and self.search is SearchMethod.EXACT
        if on_weights and not self.alignment.is_free:
            return tuple(Scheme)
        return (Scheme.ENCODE,)

    def _check_how_far(self) -> None:
        ways = (self.cr, self.sweep or None, self.plan, self.max_error, self.max_drop)
        if sum(way is not None for way in ways) != 1:
            raise UsageError(
                "say how far to compress: give one of --cr, --sweep, --plan, --max-error and "
                "--max-drop"
            )
        option = "--cr" if self.cr is not None else "--sweep"
        for cr in self.sweep if self.cr is None else (self.cr,):
            if not 0 < cr < 1:
                raise UsageError(
                    f"{option} is {cr:g}, but must be between 0 and 1: "
                    "the fraction of the parameters that is removed, such as 0.5"
                )
        if self.max_error is not None and not 0 < self.max_error < math.inf:
            raise UsageError(
                f"--max-error is {self.max_error:g}, but must be above 0: "
                "the relative error of the outputs that is allowed, such as 0.05"
            )
        if self.max_drop is None:
            return
        if not 0 <= self.max_drop < math.inf:
            raise UsageError(
                f"--max-drop is {self.max_drop:g}, but must be 0 or more: "
                "the percentage points of top-1 that may be lost, such as 0.5"
            )
        if self.evaluate is None:
            raise UsageError("--max-drop is about scores: give labelled samples with --evaluate")

    def _check_schemes(self) -> None:
        if self.schemes == ():
            raise UsageError("--schemes names no scheme: give one, such as encode")
        chosen = set(self.schemes or ())
        if self.plan is not None:
            chosen = {row.cut.scheme for row in self.plan.layers if row.cut}
        others = [scheme.value for scheme in Scheme if scheme in chosen - {Scheme.ENCODE}]
        if not others:
            return
        if self.calibration is not None:
            where = "the plan" if self.plan is not None else "--schemes"
            raise UsageError(
                f"--calibration fits the scheme 'encode' only, but {where} has '{others[0]}': "
                "leave one of the two out"
            )
        if self.search is SearchMethod.ITERATIVE and self.plan is None:
            raise UsageError(
                "--search iterative is the paper's and knows the scheme 'encode' only: "
                f"leave it out, or '{others[0]}'"
            )

    def excluded(self, names: Sequence[str]) -> frozenset[str]:
        """The layers that stay whole by `include` and `exclude`.

        Raises
        ------
        UsageError
            If a pattern matches no layer.
        """
        for option, patterns in (("--include", self.include), ("--exclude", self.exclude)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in names):
                    raise UsageError(
                        f"{option} '{pattern}' matches no layer: --dry-run lists their names"
                    )
        return frozenset(name for name in names if self._is_excluded(name))

    def _is_excluded(self, name: str) -> bool:
        included = not self.include or any(fnmatchcase(name, p) for p in self.include)
        return not included or any(fnmatchcase(name, p) for p in self.exclude)
