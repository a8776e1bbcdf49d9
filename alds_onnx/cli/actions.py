"""What the command does: compress, sweep or merge, then write and print what came of it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from alds_onnx.api import Result, compress, merge, sweep
from alds_onnx.cli.arguments import Request
from alds_onnx.cli.checks import check_compress, check_merge, check_sweep, point_paths
from alds_onnx.errors import LimitError, UsageError
from alds_onnx.graph.files.save import write_bytes
from alds_onnx.interrupts import ignore_interrupts
from alds_onnx.plans import plan_to_json
from alds_onnx.report.console import make_console, print_merge, print_report, progress_bar
from alds_onnx.report.json import dump, merge_to_json, report_to_json
from alds_onnx.report.origin import find_origin
from alds_onnx.report.swept import print_sweep, sweep_to_csv, sweep_to_json
from alds_onnx.runtimes import Runtime
from alds_onnx.settings import CompressOptions, Measuring, MergeSettings, Progress, SweepOptions
from alds_onnx.sweeps import Sweep, make_sweep
from alds_onnx.timing.store import default_file
from alds_onnx.values import Report


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Done:
    """What is left to write and to print once the models are in place.

    `show` prints the tables; where it is not called, the warnings are printed. `sides` are the
    files beside the models, None for one that nobody asked for, and what makes their contents.
    """

    show: Callable[[Console], None]
    warnings: Sequence[str]
    models: tuple[Path | None, ...]
    sides: tuple[tuple[Path | None, Callable[[], bytes]], ...]


def act(request: Request) -> None:
    """Do what the command line asks for."""
    if request.files.merge is not None:
        done = _merge(request, request.files.merge)
    elif request.values["ratios"] is not None:
        done = _sweep(request, request.values["ratios"])
    else:
        done = _compress(request)
    for path, content in done.sides:
        if path is not None:
            write_bytes(content(), path)
    if request.messages.quiet:
        for warning in done.warnings:
            print(f"alds-onnx: warning: {warning}", file=sys.stderr)
        return
    console = make_console()
    done.show(console)
    for path in (*done.models, *(path for path, _ in done.sides)):
        if path is not None:
            console.print(f"written: {path}", markup=False, soft_wrap=True)


def _compress(request: Request) -> _Done:
    target = check_compress(request)
    make_page, files = _page_maker(request), request.files
    keywords = _defaults(request) | request.keywords(CompressOptions)
    with _progress(request) as progress:
        result = compress(request.source, **keywords, progress=progress)
        page = make_page(result.report)
        if target is not None:
            result.save(target, external_data=files.save_as_external_data)
            ignore_interrupts()
    return _Done(
        show=lambda console: print_report(console, result.report),
        warnings=result.report.warnings,
        models=(target,),
        sides=(
            (files.plan_out, lambda: dump(plan_to_json(result.plan))),
            (files.json, lambda: dump(report_to_json(result.report))),
            (files.report, lambda: page),
        ),
    )


def _defaults(request: Request) -> dict[str, Any]:
    """What the command does by default and a function in Python does not: it times cuts.

    Times on this machine say little about another runtime.
    """
    is_here = request.values["target"] is Runtime.ORT
    measuring = Measuring.CHEAP if is_here else Measuring.NEVER
    return {"measuring": measuring, "timings": default_file()}


def _sweep(request: Request, ratios: Sequence[float]) -> _Done:
    """Compress by each ratio, write the models, compare them."""
    check_sweep(request, ratios)
    make_page, files, dry_run = _page_maker(request), request.files, request.values["dry_run"]
    with contextlib.ExitStack() as undo, _progress(request) as progress:
        reports, models = _points(request, progress, undo)
        unreachable = [cr for cr in ratios if cr not in dict(reports)]
        found = make_sweep(reports, unreachable=unreachable)
        page = make_page(found)
        if request.output is not None and models:
            best = _suggested(found, models)
            best.save(request.output, external_data=files.save_as_external_data)
        ignore_interrupts()
        undo.pop_all()
    return _Done(
        show=lambda console: print_sweep(console, found),
        warnings=found.points[-1].report.warnings,
        models=() if dry_run else (request.output, files.sweep_out),
        sides=(
            (files.csv, lambda: sweep_to_csv(found)),
            (files.json, lambda: dump(sweep_to_json(found))),
            (files.report, lambda: page),
        ),
    )


def _points(
    request: Request, progress: Progress, undo: contextlib.ExitStack
) -> tuple[list[tuple[float, Report]], list[Result]]:
    """The ratios and what is known about each; and the models, if one of them is to be written.

    Models and plans for `--sweep-out` are written here; `undo` removes them.
    """
    reports: list[tuple[float, Report]] = []
    models: list[Result] = []
    writes = not request.values["dry_run"]
    for result in sweep(request.source, **request.keywords(SweepOptions), progress=progress):
        assert result.plan.budget is not None
        reports.append((result.plan.budget.removed, result.report))
        if request.files.sweep_out is not None and writes:
            for path in _write_point(request, request.files.sweep_out, result):
                undo.callback(path.unlink)
        if request.output is not None and writes:
            models.append(result)
    return reports, models


def _write_point(request: Request, folder: Path, result: Result) -> Iterator[Path]:
    """Write one model and its plan; gives each file once it is there."""
    assert result.plan.budget is not None
    model, plan = point_paths(request, folder, result.plan.budget.removed)
    result.save(model, external_data=request.files.save_as_external_data)
    yield model
    write_bytes(dump(plan_to_json(result.plan)), plan)
    yield plan


def _suggested(found: Sweep, models: Sequence[Result]) -> Result:
    for point, model in zip(found.points, models, strict=True):
        if point is found.suggested:
            return model
    raise LimitError(
        "no ratio stands out, nothing was written: give one of them as --cr, or --sweep-out"
    )


def _merge(request: Request, output: Path) -> _Done:
    check_merge(request, output)
    dry_run = request.values["dry_run"]
    with _progress(request) as progress:
        result = merge(request.source, **request.keywords(MergeSettings), progress=progress)
        if not dry_run:
            result.save(output, external_data=request.files.save_as_external_data)
            ignore_interrupts()
    return _Done(
        show=lambda console: print_merge(console, result.report),
        warnings=result.report.warnings,
        models=() if dry_run else (output,),
        sides=((request.files.json, lambda: dump(merge_to_json(result.report))),),
    )


def _progress(request: Request) -> contextlib.AbstractContextManager[Progress]:
    return progress_bar(make_console(stderr=True), quiet=request.messages.quiet)


def _page_maker(request: Request) -> Callable[[Report | Sweep], bytes]:
    """What makes the HTML report; makes nothing if nobody asked for one.

    Raises
    ------
    UsageError
        If packages that it takes are not installed.
    """
    if request.files.report is None:
        return lambda _: b""
    try:
        from alds_onnx.report.html import report_to_html  # noqa: PLC0415 - packages of an extra
    except ImportError as e:
        raise UsageError(
            f"--report needs packages that are not installed ({e}): pip install 'alds-onnx[report]'"
        ) from e
    return lambda found: report_to_html(found, find_origin(request.argv))
