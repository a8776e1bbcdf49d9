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
from alds_onnx.cuts import Scheme
from alds_onnx.errors import UsageError
from alds_onnx.evaluate.scores import Evaluation
from alds_onnx.evaluate.sessions import Provider
from alds_onnx.runtimes import Runtime, preset
from alds_onnx.search.alignment import Alignment
from alds_onnx.values import Objective, Plan, SearchMethod

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
    TIMING = "timing"
    FACTORIZE = "factorize"
    MEASURE = "measure"
    VERIFY = "verify"
    DONE = "done"


class Measuring(str, Enum):
    """When cuts are timed, so that slower ones are not chosen.

    What is chosen then depends on the machine, and may differ from run to run.
    """

    NEVER = "never"
    CHEAP = "if it is cheap"
    ALWAYS = "always"


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


def _check_fraction(option: str, value: float | None, what: str) -> None:
    if value is not None and not 0 < value < 1:
        raise UsageError(f"{option} is {value:g}, but must be between 0 and 1: {what}, such as 0.5")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Settings:
    """Options of one run.

    Attributes
    ----------
    cr, cr_macs, latency_ratio, sweep, plan, max_error, max_drop
        How far. Of the first three one or more are given: fractions of the parameters and of the
        multiply-accumulates to remove, and part of the time of a run that may be left, in (0, 1).
        Or one of the others. `sweep`: several `cr`, a model for each. `plan`: cuts to apply. The
        last two: as much as possible, while the relative L2 error of every output is at most
        `max_error`, or the first score falls by at most `max_drop` (`limits.Score.drop`).
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
    measuring, allow_slower, timings, remeasure
        Whether cuts are timed in onnxruntime; whether those that are slower than the layer are kept
        all the same; the file that times are kept in, None: nowhere; and whether times that it
        holds already are measured again. A plan and `iterative` are never timed.
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
    cr_macs: float | None = None
    latency_ratio: float | None = None
    sweep: tuple[float, ...] = ()
    plan: Plan | None = None
    max_error: float | None = None
    max_drop: float | None = None
    search: SearchMethod = SearchMethod.EXACT
    seed: int = 0
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    runtime: Runtime = Runtime.ORT
    schemes: tuple[Scheme, ...] | None = None
    calibration: Calibration | None = None
    evaluate: Evaluation | None = None
    objective: Objective = Objective.MAX_RELATIVE_ERROR
    measuring: Measuring = Measuring.NEVER
    allow_slower: bool = False
    timings: Path | None = None
    remeasure: bool = False
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
        """The rule that `runtime` stands for; for a budget of time, onnxruntime's if there is none.

        Tables of time are drawn for the slices and ranks that the runtime is fast at.
        """
        timed = self.latency_ratio is not None and self.runtime is Runtime.NONE
        return Alignment(preset=preset(Runtime.ORT if timed else self.runtime))

    @property
    def candidates(self) -> tuple[Scheme, ...]:
        """The schemes to choose from: by default all where a runtime restricts the slices.

        With all slices and ranks, `ENCODE` has the smallest errors in nearly every layer, so that
        the others make no difference; without, they keep more accuracy (benchmarks/schemes.md).
        Calibration, the iterative search and tables of time know `ENCODE` only.
        """
        if self.schemes is not None:
            return self.schemes
        others = self.calibration is None and self.latency_ratio is None
        if others and self.search is SearchMethod.EXACT and not self.alignment.is_free:
            return tuple(Scheme)
        return (Scheme.ENCODE,)

    def _check_how_far(self) -> None:
        budgets = [x for x in (self.cr, self.cr_macs, self.latency_ratio) if x is not None]
        others = (self.sweep or None, self.plan, self.max_error, self.max_drop)
        if sum(other is not None for other in others) + bool(budgets) != 1:
            raise UsageError(
                "say how far to compress: give one of --cr, --sweep, --plan, --max-error and "
                "--max-drop, or --cr-macs or --latency-ratio, which go together with each other "
                "and with --cr"
            )
        for cr in self.sweep:
            _check_fraction("--sweep", cr, "the fraction of the parameters that is removed")
        _check_fraction("--cr", self.cr, "the fraction of the parameters that is removed")
        _check_fraction("--cr-macs", self.cr_macs, "the fraction of the MACs that is removed")
        _check_fraction(
            "--latency-ratio", self.latency_ratio, "the part of the time of a run that is left"
        )
        self._check_search()
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

    def _check_search(self) -> None:
        if self.search is not SearchMethod.ITERATIVE:
            return
        if self.cr_macs is not None or self.latency_ratio is not None:
            raise UsageError(
                "--search iterative knows parameters only: give --cr instead of --cr-macs and "
                "--latency-ratio, or use --search exact"
            )

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
        if self.latency_ratio is not None:
            raise UsageError(
                "--latency-ratio has tables of the scheme 'encode' only, but --schemes has "
                f"'{others[0]}': leave one of the two out, or give --cr-macs"
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

    def includes(self, name: str) -> bool:
        """Whether a pattern of `include` asks for a layer."""
        return any(fnmatchcase(name, pattern) for pattern in self.include)

    def _is_excluded(self, name: str) -> bool:
        included = not self.include or self.includes(name)
        return not included or any(fnmatchcase(name, p) for p in self.exclude)
