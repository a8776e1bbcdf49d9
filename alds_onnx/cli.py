"""The command: argv to settings to exit code. The only module that prints."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from alds_onnx.api import Result, compress, merge, sweep
from alds_onnx.arguments import OBJECTIVES, Request, arguments
from alds_onnx.errors import AldsError, TargetError, UsageError
from alds_onnx.evaluate.sessions import Provider
from alds_onnx.evaluate.timings import default_file
from alds_onnx.graph.files.save import check_output, write_bytes
from alds_onnx.interrupts import Interruption, ignore_interrupts
from alds_onnx.options import EPILOG, GroupedCommand
from alds_onnx.plans import plan_to_json, read_plan
from alds_onnx.report.console import make_console, print_report
from alds_onnx.report.json import dump, merge_to_json, report_to_json
from alds_onnx.report.merged import print_merge
from alds_onnx.report.origin import Origin, find_origin
from alds_onnx.report.progress import progress_bar
from alds_onnx.report.swept import print_sweep, sweep_to_csv, sweep_to_json
from alds_onnx.runtimes import Runtime
from alds_onnx.settings import Measuring, Progress
from alds_onnx.sweeps import Sweep, make_sweep
from alds_onnx.values import Report, SearchMethod

_INTERRUPTED = 130
_BUG = 1

# What a merge takes, by the names in `Request`.
_OF_A_MERGE = (
    "source",
    "merge",
    "input_shapes",
    "provider",
    "threads",
    "seed",
    "save_as_external_data",
    "json_out",
    "dry_run",
    "quiet",
    "traceback",
)


@click.command(cls=GroupedCommand, epilog=EPILOG, context_settings={"max_content_width": 100})
@arguments
@click.pass_obj
def command(argv: tuple[str, ...], /, **options: Any) -> None:
    """Compress a trained ONNX model by low-rank decomposition (ALDS).

    Every Conv, ConvTranspose, Gemm and MatMul with a constant weight may become a pair of smaller
    ones; ranks are chosen so that the largest relative error is as small as the budget allows.
    onnxruntime checks the result before OUT.onnx is written. IN.onnx is never changed.
    """
    request = Request(argv=argv, **options)
    if request.merge is not None:
        _refuse_with_merge(click.get_current_context())
        _merge(request, request.merge)
    elif request.sweep is not None:
        _sweep(request, request.sweep)
    else:
        _run(request)


def run(argv: Sequence[str]) -> int:  # noqa: PLR0911 - one return for each way to end
    """Run the command.

    Returns
    -------
    The exit code: 0, 1, 2 or 130.
    """
    interruption = Interruption()
    try:
        with interruption:
            command.main(list(argv), prog_name="alds-onnx", standalone_mode=False, obj=tuple(argv))
    except click.exceptions.NoArgsIsHelpError as e:
        return _fail(f"nothing to do: give IN.onnx OUT.onnx --cr FRACTION, or --help ({e})", 2)
    except click.ClickException as e:
        return _fail(e.format_message(), e.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted; nothing was written", _INTERRUPTED)
    except BrokenPipeError:
        # The reader of the report went away (`| head`); the model was written before it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as e:  # noqa: BLE001 - the last resort: a bug must not print a page
        if interruption.came:
            return _fail("interrupted; nothing was written", _INTERRUPTED)
        return _fail_with(e, traceback_wanted="--traceback" in argv)
    return 0


def _fail_with(error: Exception, *, traceback_wanted: bool) -> int:
    """Say what went wrong; the exit code."""
    if traceback_wanted:
        traceback.print_exc()
    if isinstance(error, AldsError):
        return _fail(str(error), error.exit_code)
    if isinstance(error, MemoryError):
        return _fail(f"not enough memory ({error})", 2)
    what = f"{type(error).__name__}: {error}"
    hint = "please report it with the output of --traceback"
    return _fail(f"internal error, nothing was written: {what}; {hint}", _BUG)


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    printable = "".join(c if c.isprintable() else "?" for c in line)
    print(f"alds-onnx: error: {printable}", file=sys.stderr)
    return code


def _run(request: Request) -> None:
    for name, given in (("--sweep-out", request.sweep_out), ("--csv", request.csv_out)):
        if given is not None:
            raise UsageError(f"{name} is about several ratios: give --sweep too")
    target = _check_paths(request)
    make_page = _page_maker() if request.report_out else None
    console = make_console()
    plan = read_plan(request.plan) if request.plan else None
    with progress_bar(make_console(stderr=True), quiet=request.quiet) as progress:
        result = compress(
            request.source,
            cr=request.cr,
            cr_macs=request.cr_macs,
            latency_ratio=request.latency_ratio,
            max_error=request.max_error,
            max_drop=request.max_drop,
            evaluate=request.evaluate,
            calibration=request.calibration,
            objective=OBJECTIVES[request.objective] if request.objective else None,
            plan=plan,
            search=SearchMethod(request.search),
            target=Runtime(request.runtime),
            schemes=request.schemes,
            measuring=_measuring(request),
            allow_slower=request.allow_slower,
            timings=default_file(),
            remeasure=request.remeasure,
            include=request.include,
            exclude=request.exclude,
            input_shapes=dict(request.input_shapes),
            seed=request.seed,
            threads=request.threads,
            provider=Provider(request.provider),
            dry_run=request.dry_run,
            cache=request.cache,
            progress=progress,
        )
        page = make_page(result.report, find_origin(request.argv)) if make_page else b""
        if target is not None:
            result.save(target, external_data=request.save_as_external_data)
            ignore_interrupts()
    if request.plan_out:
        write_bytes(dump(plan_to_json(result.plan)), request.plan_out)
    if request.json_out:
        write_bytes(dump(report_to_json(result.report)), request.json_out)
    if request.report_out:
        write_bytes(page, request.report_out)
    _print_result(console, request, result, target)


def _sweep(request: Request, ratios: tuple[float, ...]) -> None:
    """Compress by each ratio, write the models, compare them."""
    _check_sweep(request)
    make_page = _page_maker() if request.report_out else None
    console = make_console()
    reports: list[tuple[float, Report]] = []
    models: list[Result] = []  # kept only where one of them is written in the end
    with (
        contextlib.ExitStack() as undo,
        progress_bar(make_console(stderr=True), quiet=request.quiet) as progress,
    ):
        for result in _points(request, ratios, progress):
            assert result.plan.budget is not None
            reports.append((result.plan.budget.removed, result.report))
            if request.sweep_out is not None and not request.dry_run:
                for path in _write_point(request, request.sweep_out, reports[-1][0], result):
                    undo.callback(path.unlink)
            if request.target is not None and not request.dry_run:
                models.append(result)
        unreachable = [cr for cr in ratios if cr not in dict(reports)]
        found = make_sweep(reports, unreachable=unreachable)
        page = make_page(found, find_origin(request.argv)) if make_page else b""
        if request.target is not None and models:
            _suggested(found, models).save(
                request.target, external_data=request.save_as_external_data
            )
        ignore_interrupts()
        undo.pop_all()
    if request.csv_out:
        write_bytes(sweep_to_csv(found), request.csv_out)
    if request.json_out:
        write_bytes(dump(sweep_to_json(found)), request.json_out)
    if request.report_out:
        write_bytes(page, request.report_out)
    if not request.quiet:
        print_sweep(console, found)
    models_out = () if request.dry_run else (request.target, request.sweep_out)
    written = (*models_out, request.csv_out, request.json_out, request.report_out)
    _print_end(console, request, found.points[-1].report.warnings, written)


def _points(request: Request, ratios: tuple[float, ...], progress: Progress) -> Iterator[Result]:
    return sweep(
        request.source,
        ratios,
        evaluate=request.evaluate,
        calibration=request.calibration,
        objective=OBJECTIVES[request.objective] if request.objective else None,
        search=SearchMethod(request.search),
        target=Runtime(request.runtime),
        schemes=request.schemes,
        include=request.include,
        exclude=request.exclude,
        input_shapes=dict(request.input_shapes),
        seed=request.seed,
        threads=request.threads,
        provider=Provider(request.provider),
        dry_run=request.dry_run,
        cache=request.cache,
        progress=progress,
    )


def _check_sweep(request: Request) -> None:
    """Refuse what a sweep cannot do, before any work is done."""
    ways = (request.cr, request.cr_macs, request.latency_ratio, request.max_error, request.max_drop)
    if any(way is not None for way in ways):
        raise UsageError(
            "--sweep stands instead of --cr, --cr-macs, --latency-ratio, --max-error and "
            "--max-drop: leave them out"
        )
    if request.measure or request.allow_slower or request.remeasure:
        raise UsageError(
            "--sweep times no cuts: leave --measure, --allow-slower and --remeasure out"
        )
    for name, given in (("--plan", request.plan), ("--plan-out", request.plan_out)):
        if given is not None:
            raise UsageError(f"{name} is about one model, --sweep about several: see --sweep-out")
    outputs = [request.target, request.json_out, request.csv_out, request.report_out]
    _check_outputs(request.source, outputs)
    if request.sweep_out is not None:
        try:
            request.sweep_out.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise UsageError(f"cannot make the folder of --sweep-out: {e}") from e
        for cr in request.sweep or ():
            _check_outputs(request.source, [*outputs, *_paths(request, request.sweep_out, cr)])


def _paths(request: Request, folder: Path, cr: float) -> tuple[Path, Path]:
    """Model and plan of one point."""
    stem = f"{request.source.stem}-cr{cr:g}"
    return folder / f"{stem}.onnx", folder / f"{stem}.plan.json"


def _write_point(request: Request, folder: Path, cr: float, result: Result) -> Iterator[Path]:
    """Write one model and its plan; gives each file once it is there."""
    model, plan = _paths(request, folder, cr)
    result.save(model, external_data=request.save_as_external_data)
    yield model
    write_bytes(dump(plan_to_json(result.plan)), plan)
    yield plan


def _suggested(found: Sweep, models: Sequence[Result]) -> Result:
    for point, model in zip(found.points, models, strict=True):
        if point is found.suggested:
            return model
    raise TargetError(
        "no ratio stands out, nothing was written: give one of them as --cr, or --sweep-out"
    )


def _refuse_with_merge(context: click.Context) -> None:
    """Refuse what says how to compress: a merge would do without it, unseen."""
    for parameter in context.command.params:
        name = parameter.name or ""
        source = context.get_parameter_source(name)
        if name not in _OF_A_MERGE and source is ParameterSource.COMMANDLINE:
            shown = parameter.opts[-1] if isinstance(parameter, click.Option) else "OUT.onnx"
            raise UsageError(f"{shown} does not go with --merge: give alds-onnx IN --merge OUT")


def _merge(request: Request, target: Path) -> None:
    _check_outputs(request.source, [target, request.json_out])
    console = make_console()
    with progress_bar(make_console(stderr=True), quiet=request.quiet) as progress:
        result = merge(
            request.source,
            input_shapes=dict(request.input_shapes),
            seed=request.seed,
            threads=request.threads,
            provider=Provider(request.provider),
            dry_run=request.dry_run,
            progress=progress,
        )
        if not request.dry_run:
            result.save(target, external_data=request.save_as_external_data)
            ignore_interrupts()
    if request.json_out:
        write_bytes(dump(merge_to_json(result.report)), request.json_out)
    if not request.quiet:
        print_merge(console, result.report)
    written = (None if request.dry_run else target, request.json_out)
    _print_end(console, request, result.report.warnings, written)


def _measuring(request: Request) -> Measuring:
    """Times of this machine say little about another runtime."""
    if request.measure is not None:
        return Measuring.ALWAYS if request.measure else Measuring.NEVER
    return Measuring.CHEAP if Runtime(request.runtime) is Runtime.ORT else Measuring.NEVER


def _page_maker() -> Callable[[Report | Sweep, Origin], bytes]:
    """What makes the HTML report, if the packages that it takes are installed."""
    try:
        from alds_onnx.report.html import report_to_html  # noqa: PLC0415 - packages of an extra
    except ImportError as e:
        raise UsageError(
            f"--report needs packages that are not installed ({e}): pip install 'alds-onnx[report]'"
        ) from e
    return report_to_html


def _check_paths(request: Request) -> Path | None:
    """Refuse outputs that cannot be written, before any work is done; give the target."""
    _check_outputs(request.source, [request.target, *request.side_files])
    if request.dry_run:
        return None
    if request.target is None:
        raise UsageError("no OUT.onnx: say where to write the compressed model, or --dry-run")
    return request.target


def _check_outputs(source: Path, given: Sequence[Path | None]) -> None:
    outputs = [path for path in given if path is not None]
    if any(str(path) == "-" for path in (source, *outputs)):
        raise UsageError("'-' is not a file: standard input and output are not supported")
    if len({os.path.realpath(path) for path in outputs}) != len(outputs):
        raise UsageError("two outputs have the same path")
    for path in outputs:
        check_output(path, source)


def _print_result(console: Console, request: Request, result: Result, target: Path | None) -> None:
    if not request.quiet:
        print_report(console, result.report)
    written = (target, *request.side_files)
    _print_end(console, request, result.report.warnings, written)


def _print_end(
    console: Console, request: Request, warnings: Sequence[str], written: Sequence[Path | None]
) -> None:
    """Say what was written; or, where nothing else was printed, the warnings."""
    if request.quiet:
        for warning in warnings:
            print(f"alds-onnx: warning: {warning}", file=sys.stderr)
        return
    for path in written:
        if path is not None:
            console.print(f"written: {path}", markup=False, soft_wrap=True)
