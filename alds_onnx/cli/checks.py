"""Refuses what makes no sense on a command line, before any work is done."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from alds_onnx.cli.arguments import Messages, Request
from alds_onnx.errors import UsageError
from alds_onnx.graph.files.save import check_output
from alds_onnx.options.amount import Amount
from alds_onnx.options.choice import Timing
from alds_onnx.options.declare import Options, declared
from alds_onnx.settings import MergeSettings

# What a merge takes beside the options of its function.
_OF_A_MERGE = ("source", "merge", "save_as_external_data", "json")


def check_compress(request: Request) -> Path | None:
    """Check what is asked of one compression; gives the path of the model, None in a dry run."""
    files = request.files
    for flag, given in (("--sweep-out", files.sweep_out), ("--csv", files.csv)):
        if given is not None:
            raise UsageError(f"{flag} is about several ratios: give --sweep too")
    outputs = [request.output, files.plan_out, files.json, files.report]
    _check_outputs(request.source, outputs)
    if request.values["dry_run"]:
        return None
    if request.output is None:
        raise UsageError("no OUT.onnx: say where to write the compressed model, or --dry-run")
    return request.output


def check_sweep(request: Request, ratios: Sequence[float]) -> None:
    """Check what is asked of a sweep, and make its folder."""
    files = request.files
    amounts, timing = _flags(Amount, but=("plan",)), _flags(Timing)
    if _any_is_given(request, amounts):
        raise UsageError(f"--sweep stands instead of {_listed(amounts)}: leave them out")
    if _any_is_given(request, timing):
        raise UsageError(f"--sweep times no cuts: leave {_listed(timing)} out")
    for flag, given in (("--plan", request.values["plan"]), ("--plan-out", files.plan_out)):
        if given is not None:
            raise UsageError(f"{flag} is about one model, --sweep about several: see --sweep-out")
    outputs = [request.output, files.json, files.csv, files.report]
    _check_outputs(request.source, outputs)
    if files.sweep_out is None:
        return
    try:
        files.sweep_out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"cannot make the folder of --sweep-out: {e}") from e
    for cr in ratios:
        _check_outputs(request.source, [*outputs, *point_paths(request, files.sweep_out, cr)])


def check_merge(request: Request, output: Path) -> None:
    """Refuse options that say how to compress: a merge would ignore them."""
    known = {field.name for kind in (MergeSettings, Messages) for field, _ in declared(kind)}
    for name, shown in request.given.items():
        if name not in known.union(_OF_A_MERGE):
            raise UsageError(f"{shown} does not go with --merge: give alds-onnx IN --merge OUT")
    _check_outputs(request.source, [output, request.files.json])


def point_paths(request: Request, folder: Path, cr: float) -> tuple[Path, Path]:
    """Paths of the model and the plan of one ratio."""
    stem = f"{request.source.stem}-cr{cr:g}"
    return folder / f"{stem}.onnx", folder / f"{stem}.plan.json"


def _flags(group: type[Options], but: Collection[str] = ()) -> dict[str, str]:
    """The flags of a group by keyword."""
    return {
        field.name: option.flags[0]
        for field, option in declared(group)
        if option.flags and field.name not in but
    }


def _any_is_given(request: Request, flags: Collection[str]) -> bool:
    values = [request.values[name] for name in flags]
    return any(value is not None and value is not False for value in values)


def _listed(flags: dict[str, str]) -> str:
    *others, last = flags.values()
    return f"{', '.join(others)} and {last}"


def _check_outputs(source: Path, given: Sequence[Path | None]) -> None:
    outputs = [path for path in given if path is not None]
    if any(str(path) == "-" for path in (source, *outputs)):
        raise UsageError("'-' is not a file: standard input and output are not supported")
    if len({os.path.realpath(path) for path in outputs}) != len(outputs):
        raise UsageError("two outputs have the same path")
    for path in outputs:
        check_output(path, source)
