"""How far to compress which model."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from alds_onnx.errors import UsageError
from alds_onnx.options.declare import Heading, Option, Options, option
from alds_onnx.plans import read_plan
from alds_onnx.values import Plan

if TYPE_CHECKING:  # `--help` answers before onnx is loaded
    from onnx import ModelProto

#: A model: the path of its file, or the model itself.
Source: TypeAlias = "str | os.PathLike[str] | ModelProto"

_MOST_RATIOS = 100


def check_fraction(flag: str, value: float | None, what: str) -> None:
    """Refuse a value outside (0, 1)."""
    if value is not None and not 0 < value < 1:
        raise UsageError(f"{flag} is {value:g}, but must be between 0 and 1: {what}, such as 0.5")


@dataclass(kw_only=True, eq=False)
class Model(Options):
    """The model to work on."""

    model: Source = field(
        kw_only=False,
        metadata={"option": Option(python="Path of a model file, or a model; neither is changed.")},
    )


def parse_ratios(text: str) -> tuple[float, ...]:
    """Parse `0.1:0.9:0.1`, the last one included, or `0.2,0.5`; counts in decimal numbers."""
    try:
        if ":" not in text:
            return tuple(float(Decimal(part)) for part in text.split(","))
        first, last, step = (Decimal(part) for part in text.split(":"))
        count = int((last - first) / step) + 1
    except (ArithmeticError, ValueError) as e:
        raise ValueError(f"'{text}' is not like 0.1:0.9:0.1 or 0.2,0.5") from e
    if step <= 0 or not 0 < count <= _MOST_RATIOS:
        raise ValueError(f"'{text}' makes no steps, or more than {_MOST_RATIOS}")
    return tuple(float(first + i * step) for i in range(count))


@dataclass(kw_only=True, eq=False)
class Ratios(Options):
    """How far to compress, several times."""

    heading = Heading.HOW_FAR
    ratios: Sequence[float] = field(
        kw_only=False,
        metadata={
            "option": Option(
                flag="--sweep FIRST:LAST:STEP",
                parse=parse_ratios,
                help="Instead of --cr: compress by each of several ratios, such as 0.1:0.9:0.1 or "
                "0.3,0.5, and suggest one. OUT.onnx is optional; it gets that one.",
                python="Fractions of the parameters to remove, each between 0 and 1. Those out of "
                "reach are left out, unless all are.",
                more="With --calibration each point is fitted once, where --cr chooses its ranks a "
                "second time after that, and is a little better. Cuts are not timed.",
            )
        },
    )


@dataclass(kw_only=True, eq=False)
class Amount(Options):
    """How far to compress.

    Either budgets are given, which are the first three, alone or together; or one of the others.
    """

    heading = Heading.HOW_FAR
    cr: float | None = option(
        None,
        flag="--cr FRACTION",
        help="Fraction of the model's parameters to remove, such as 0.5.",
        more="Give one of this, --plan, --max-error and --max-drop; or --cr-macs and "
        "--latency-ratio, which may come together with each other and with this.",
    )
    cr_macs: float | None = option(
        None,
        flag="--cr-macs FRACTION",
        help="Fraction of the multiply-accumulates of one run to remove; instead of --cr or with "
        "it.",
        more="Those of all nodes that can be cut and whose shapes are known count.",
    )
    latency_ratio: float | None = option(
        None,
        flag="--latency-ratio RATIO",
        help="Part of the time of one run that may be left, in onnxruntime on this machine with "
        "--threads, such as 0.6; instead of --cr and --cr-macs or with them.",
        more="It is measured with the whole model, and missed by a few percent of itself. The "
        "slices and ranks are those of --target, or of 'ort' if that is 'none'.",
    )
    plan: Plan | None = option(
        None,
        flag="--plan FILE.json",
        parse=Path,
        load=read_plan,
        help="Instead of --cr: apply exactly the cuts of this plan.",
        python="Instead of --cr: cuts to apply exactly, from `read_plan` or an earlier result.",
    )
    max_error: float | None = option(
        None,
        flag="--max-error E",
        help="Instead of --cr: remove as much as possible while the relative L2 error of every "
        "output is at most E, on inputs that the fit does not see.",
        python="Instead of --cr: remove as much as possible while the relative L2 error of every "
        "output is at most this, on inputs that the fit does not see.",
        more="With --calibration two parts of the data are set aside before anything is fitted: "
        "one chooses the ratio, and what is chosen must keep the limit on the other too. Without, "
        "the inputs are random numbers.",
    )
    max_drop: float | None = option(
        None,
        flag="--max-drop POINTS",
        help="Instead of --cr: remove as much as possible while top-1 falls by at most so many "
        "percentage points on the samples of --evaluate.",
        python="Instead of --cr: remove as much as possible while top-1 falls by at most so many "
        "percentage points on the data of --evaluate; or what the function there returns, by at "
        "most this.",
        more="From 8 samples on, one half chooses the ratio, and what is chosen must keep the "
        "limit on the other half too, which alone is reported.",
    )

    @property
    def budgets(self) -> tuple[float, ...]:
        """The budgets that were given; they go together."""
        given = (self.cr, self.cr_macs, self.latency_ratio)
        return tuple(budget for budget in given if budget is not None)

    def check(self) -> None:
        """Refuse fractions and limits out of their range."""
        super().check()
        check_fraction("--cr", self.cr, "the fraction of the parameters that is removed")
        check_fraction("--cr-macs", self.cr_macs, "the fraction of the MACs that is removed")
        check_fraction(
            "--latency-ratio", self.latency_ratio, "the part of the time of a run that is left"
        )
        if self.max_error is not None and not 0 < self.max_error < math.inf:
            raise UsageError(
                f"--max-error is {self.max_error:g}, but must be above 0: "
                "the relative error of the outputs that is allowed, such as 0.05"
            )
        if self.max_drop is not None and not 0 <= self.max_drop < math.inf:
            raise UsageError(
                f"--max-drop is {self.max_drop:g}, but must be 0 or more: "
                "the percentage points of top-1 that may be lost, such as 0.5"
            )
