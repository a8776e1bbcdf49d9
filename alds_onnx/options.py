"""Options of the command: under headings in `--help`, and types of their own."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any, TypeVar

import click

from alds_onnx.cuts import Scheme

#: Most points of a sweep.
MOST_RATIOS = 100

_F = TypeVar("_F", bound=Callable[..., Any])

#: What stands below the options in `--help`.
EPILOG = """\b
Examples:
  alds-onnx in.onnx out.onnx --cr 0.5
      remove half of the parameters
  alds-onnx in.onnx out.onnx --cr 0.5 --calibration samples.npz
      and keep the accuracy, with real inputs (arrays named by input)
  alds-onnx in.onnx out.onnx --max-drop 0.5 --evaluate labelled.npz --calibration samples.npz
      as small as half a point of top-1 allows
  alds-onnx in.onnx --sweep 0.1:0.9:0.1
      what each ratio would cost, and which one to take
  alds-onnx in.onnx out.onnx --latency-ratio 0.6 --threads 1
      6 tenths of the time of a run on this machine, on one thread
  alds-onnx in.onnx --cr 0.5 --dry-run --plan-out plan.json
      only decide; edit the plan, then apply it:
  alds-onnx in.onnx out.onnx --plan plan.json
  alds-onnx in.onnx out.onnx --cr 0.3 --exclude '/head/*'
      leave some layers alone
  alds-onnx out.onnx --merge dense.onnx
      the way back: dense layers that compute the same

\b
Exit codes: 0 done and verified (or not verifiable: a warning says so);
1 verification failed, or no compression within --max-error or --max-drop: nothing written;
2 bad usage or input; 130 interrupted.
"""


class _GroupedOption(click.Option):
    """An option with the heading under which `--help` lists it."""

    def __init__(self, *args: Any, group: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.group = group


class GroupedCommand(click.Command):
    """A command whose help lists options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, one section for each heading."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                heading = getattr(parameter, "group", "About")
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def option(group: str, *names: str, **attributes: Any) -> Callable[[_F], _F]:
    """`click.option` under a heading."""
    return click.option(*names, cls=_GroupedOption, group=group, **attributes)


class Shape(click.ParamType[tuple[str, tuple[int, ...]]]):
    """`name:1,3,224,224`; the name may hold colons itself."""

    name = "NAME:D1,D2,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, tuple[int, ...]]:
        """Split at the last colon."""
        name, colon, dims = str(value).rpartition(":")
        sizes = dims.split(",") if dims else []
        if not colon or not all(size.strip().isdigit() for size in sizes):
            self.fail(f"'{value}' is not like input:1,3,224,224", param, ctx)
        return name, tuple(int(size) for size in sizes)


class Schemes(click.ParamType[tuple[Scheme, ...]]):
    """`encode,decode`, or `all`."""

    name = "NAME,.."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[Scheme, ...]:
        """Split at commas."""
        if value == "all":
            return tuple(Scheme)
        known = {scheme.value: scheme for scheme in Scheme}
        names = [name.strip() for name in str(value).split(",")]
        for name in names:
            if name not in known:
                self.fail(f"'{name}' is not one of {', '.join(known)}, all", param, ctx)
        return tuple(known[name] for name in names)


class Ratios(click.ParamType[tuple[float, ...]]):
    """`0.1:0.9:0.1`, the last one included, or `0.2,0.5`; counted in decimal numbers."""

    name = "FIRST:LAST:STEP"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """Split, and count from the first to the last."""
        text = str(value)
        try:
            if ":" not in text:
                return tuple(float(Decimal(part)) for part in text.split(","))
            first, last, step = (Decimal(part) for part in text.split(":"))
            count = int((last - first) / step) + 1
        except (ArithmeticError, ValueError):
            self.fail(f"'{value}' is not like 0.1:0.9:0.1 or 0.2,0.5", param, ctx)
        if step <= 0 or not 0 < count <= MOST_RATIOS:
            self.fail(f"'{value}' makes no steps, or more than {MOST_RATIOS}", param, ctx)
        return tuple(float(first + i * step) for i in range(count))
