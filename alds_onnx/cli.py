"""The command: argv to settings to exit code. The only module that prints."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click
import rich.progress
from click.core import ParameterSource
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn

from alds_onnx.api import Result, compress, merge, sweep
from alds_onnx.errors import AldsError, TargetError, UsageError
from alds_onnx.evaluate.sessions import Provider
from alds_onnx.evaluate.timings import default_file
from alds_onnx.graph.save import check_target, write_bytes
from alds_onnx.options import EPILOG, GroupedCommand, Ratios, Schemes, Shape, option
from alds_onnx.plans import plan_to_json, read_plan
from alds_onnx.report.console import make_console, print_report
from alds_onnx.report.json import dump, merge_to_json, report_to_json
from alds_onnx.report.merged import print_merge
from alds_onnx.report.origin import Origin, find_origin
from alds_onnx.report.swept import print_sweep, sweep_to_csv, sweep_to_json
from alds_onnx.runtimes import Runtime
from alds_onnx.settings import Measuring, Progress, Step
from alds_onnx.sweeps import Sweep, make_sweep
from alds_onnx.values import Objective, Report, Scheme, SearchMethod

_INTERRUPTED = 130
_BUG = 1

_STEPS = {
    Step.LOAD: "Reading the model",
    Step.SCORES: "Scoring",
    Step.SPECTRA: "Singular values",
    Step.STATISTICS: "Watching the layers on the data",
    Step.SENSITIVITY: "Probing the layers",
    Step.INPUTS: "Finding inputs",
    Step.ATTEMPT: "Attempt",
    Step.SEARCH: "Choosing slices and ranks",
    Step.TIMING: "Timing cuts",
    Step.FACTORIZE: "Decomposing",
    Step.MEASURE: "Measuring",
    Step.MERGE: "Joining pairs",
    Step.VERIFY: "Checking with onnxruntime",
    Step.DONE: "Done",
}

# What is done again for every attempt of --max-error and --max-drop.
_OF_AN_ATTEMPT = (Step.SEARCH, Step.TIMING, Step.FACTORIZE, Step.MEASURE)

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

_OBJECTIVES = {"sum": Objective.SUM_OUTPUT_ERROR, "max": Objective.MAX_OUTPUT_ERROR}

_PATH = click.Path(path_type=Path)


@click.command(cls=GroupedCommand, epilog=EPILOG, context_settings={"max_content_width": 100})
@click.argument("source", metavar="IN.onnx", type=_PATH)
@click.argument("target", metavar="OUT.onnx", type=_PATH, required=False)
@option(
    "How far",
    "--cr",
    type=float,
    metavar="FRACTION",
    help="Fraction of the model's parameters to remove, such as 0.5.",
)
@option(
    "How far",
    "--cr-macs",
    type=float,
    metavar="FRACTION",
    help="Fraction of the multiply-accumulates of one run to remove; instead of --cr or with it.",
)
@option(
    "How far",
    "--latency-ratio",
    type=float,
    metavar="RATIO",
    help="Part of the time of one run that may be left, in onnxruntime on this machine with "
    "--threads, such as 0.6; instead of --cr and --cr-macs or with them.",
)
@option(
    "How far",
    "--plan",
    type=_PATH,
    metavar="FILE.json",
    help="Instead of --cr: apply exactly the cuts of this plan.",
)
@option(
    "How far",
    "--max-error",
    type=float,
    metavar="E",
    help="Instead of --cr: remove as much as possible while the relative L2 error of every output "
    "is at most E, on data that the fit does not see: every fifth run of --calibration, or random "
    "inputs.",
)
@option(
    "How far",
    "--max-drop",
    type=float,
    metavar="POINTS",
    help="Instead of --cr: remove as much as possible while top-1 falls by at most so many "
    "percentage points on the samples of --evaluate.",
)
@option(
    "How far",
    "--sweep",
    type=Ratios(),
    help="Instead of --cr: compress by each of several ratios, such as 0.1:0.9:0.1 or 0.3,0.5, "
    "compare what they cost, and suggest one. OUT.onnx is optional then; it gets the suggested "
    "model. With --calibration each is fitted once, where --cr chooses its ranks a second time.",
)
@option(
    "How far",
    "--merge",
    type=_PATH,
    metavar="OUT.onnx",
    help="The way back: join the pairs of a compressed IN.onnx to dense layers that compute the "
    "same, to train them elsewhere or to compress them again. Goes without OUT.onnx and all that "
    "decides how to compress.",
)
@option(
    "Which layers, which ranks",
    "--search",
    type=click.Choice([s.value for s in SearchMethod]),
    default=SearchMethod.EXACT.value,
    show_default=True,
    help="exact: the global optimum; iterative: Algorithm 1 of the ALDS paper.",
)
@option(
    "Which layers, which ranks",
    "--target",
    "runtime",
    type=click.Choice([r.value for r in Runtime]),
    default=Runtime.NONE.value,
    show_default=True,
    help="What will run OUT.onnx: only slices and ranks that it is fast at are chosen. ort: "
    "onnxruntime on this machine's processor; none: all, as in the paper.",
)
@option(
    "Which layers, which ranks",
    "--schemes",
    type=Schemes(),
    help="What a convolution may become, comma-separated: encode (kh x kw, 1x1; the paper's), "
    "decode (1x1, kh x kw), split-height (kh x 1, 1 x kw), split-width (1 x kw, kh x 1), tucker2 "
    "(1x1, kh x kw, 1x1), or all. The search chooses for each layer. Default: all with a --target, "
    "encode without one, and with --calibration, --latency-ratio or --search iterative, which know "
    "no other.",
)
@option(
    "Which layers, which ranks",
    "--measure/--no-measure",
    default=None,
    help="Time the cuts of each layer in onnxruntime on this machine, and choose none that is "
    "slower than the layer. Default: with a --target, if it is cheap, up to about half a minute. "
    "Without, the same input and options give the same bytes.",
)
@option(
    "Which layers, which ranks",
    "--allow-slower",
    is_flag=True,
    help="Choose by error and budget alone; of slower cuts, only say which they are.",
)
@option(
    "Which layers, which ranks",
    "--remeasure",
    is_flag=True,
    help="Do not use times that an earlier run has kept.",
)
@option(
    "Which layers, which ranks",
    "--include",
    multiple=True,
    metavar="PATTERN",
    help="Decompose only layers whose names match (glob; repeatable).",
)
@option(
    "Which layers, which ranks",
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Keep layers whose names match (glob; repeatable).",
)
@option(
    "Which layers, which ranks",
    "--seed",
    type=int,
    default=0,
    show_default=True,
    help="Seed of random starts and random inputs.",
)
@option(
    "Real data",
    "--calibration",
    type=_PATH,
    metavar="PATH",
    help="Real inputs without labels: an .npz with arrays named by input, or a folder of .npz or "
    ".npy. Ranks are then chosen by measured output errors and factors fitted to the data, which "
    "keeps far more accuracy.",
)
@option(
    "Real data",
    "--evaluate",
    type=_PATH,
    metavar="LABELLED.npz",
    help="Print top-1 and top-5 before and after: arrays named by input, and class numbers from 0 "
    "in the array 'labels'. Use samples that are not in --calibration. A dry run scores nothing, "
    "unless --max-drop needs it.",
)
@option(
    "Real data",
    "--objective",
    type=click.Choice(list(_OBJECTIVES)),
    help="With --calibration: make the sum (default) or the maximum of the output errors small.",
)
@option(
    "Checks",
    "--input-shape",
    "input_shapes",
    type=Shape(),
    multiple=True,
    help="Shape of an input with free sizes (repeatable).",
)
@option(
    "Checks",
    "--provider",
    type=click.Choice([p.value for p in Provider]),
    default=Provider.CPU.value,
    show_default=True,
    help="Where onnxruntime runs the models.",
)
@option(
    "Checks",
    "--threads",
    type=int,
    metavar="N",
    help="Threads; default: all processors. The model written does not depend on it.",
)
@option(
    "Output",
    "--save-as-external-data",
    is_flag=True,
    help="Write large weights to a data file beside OUT.onnx; over 2 GiB this is done anyway.",
)
@option(
    "Output",
    "--sweep-out",
    type=_PATH,
    metavar="DIR",
    help="With --sweep: write the model and the plan of every ratio there.",
)
@option(
    "Output",
    "--csv",
    "csv_out",
    type=_PATH,
    metavar="FILE.csv",
    help="With --sweep: write the table.",
)
@option("Output", "--plan-out", type=_PATH, metavar="FILE.json", help="Write the plan.")
@option(
    "Output",
    "--json",
    "json_out",
    type=_PATH,
    metavar="FILE.json",
    help="Write plan, measurements and versions.",
)
@option(
    "Output",
    "--report",
    "report_out",
    type=_PATH,
    metavar="FILE.html",
    help="Write a page with pictures of all this; needs alds-onnx[report].",
)
@option(
    "Output",
    "--cache",
    type=_PATH,
    metavar="DIR",
    help="Keep error curves and measurements there, by what they depend on: another run on the "
    "same model and data starts at the search. DIR may be deleted at any time.",
)
@option("Output", "--dry-run", is_flag=True, help="Decide and report; check and write no model.")
@option("Output", "--quiet", is_flag=True, help="Print nothing but warnings and errors.")
@option("Output", "--traceback", is_flag=True, help="Show where an error comes from.")
@click.version_option(package_name="alds-onnx", message="alds-onnx %(version)s")
@click.pass_obj
def command(argv: tuple[str, ...], /, **options: Any) -> None:
    """Compress a trained ONNX model by low-rank decomposition (ALDS).

    Every Conv, Gemm and MatMul with a constant weight may become a pair of smaller ones; ranks are
    chosen so that the largest relative error is as small as the budget allows. onnxruntime checks
    the result before OUT.onnx is written. IN.onnx is never changed.
    """
    request = Request(argv=argv, **options)
    if request.merge is not None:
        _refuse_with_merge(click.get_current_context())
        _merge(request, request.merge)
    elif request.sweep is not None:
        _sweep(request, request.sweep)
    else:
        _run(request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The command line, parsed but not yet checked."""

    argv: tuple[str, ...]
    source: Path
    target: Path | None
    cr: float | None
    cr_macs: float | None
    latency_ratio: float | None
    plan: Path | None
    max_error: float | None
    max_drop: float | None
    sweep: tuple[float, ...] | None
    sweep_out: Path | None
    csv_out: Path | None
    merge: Path | None
    search: str
    runtime: str
    schemes: tuple[Scheme, ...] | None
    measure: bool | None
    allow_slower: bool
    remeasure: bool
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    seed: int
    calibration: Path | None
    evaluate: Path | None
    objective: str | None
    input_shapes: tuple[tuple[str, tuple[int, ...]], ...]
    provider: str
    threads: int | None
    save_as_external_data: bool
    plan_out: Path | None
    json_out: Path | None
    cache: Path | None
    report_out: Path | None
    dry_run: bool
    quiet: bool
    traceback: bool

    @property
    def side_files(self) -> tuple[Path | None, ...]:
        """What is written beside the model, in this order."""
        return self.plan_out, self.json_out, self.report_out


def run(argv: Sequence[str]) -> int:  # noqa: PLR0911 - one return for each way to end
    """Run the command.

    Returns
    -------
    The exit code: 0, 1, 2 or 130.
    """
    interruption = _Interruption()
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


class _Interruption:
    """Makes SIGTERM end the work like Ctrl-C, so that temporary files are removed.

    Attributes
    ----------
    came
        Whether one of the two signals came: libraries may turn a KeyboardInterrupt in one of their
        callbacks into an error of their own.
    """

    def __init__(self) -> None:
        self.came = False
        self._before: list[tuple[signal.Signals, Any]] = []

    def __enter__(self) -> _Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before.append((number, signal.signal(number, self._interrupt)))
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before:
            signal.signal(number, handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        raise KeyboardInterrupt


def _ignore_interrupts() -> None:
    """Let the rest run to its end, once OUT is in place: exit 130 says that nothing was written."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


def _run(request: Request) -> None:
    for name, given in (("--sweep-out", request.sweep_out), ("--csv", request.csv_out)):
        if given is not None:
            raise UsageError(f"{name} is about several ratios: give --sweep too")
    target = _check_paths(request)
    make_page = _page_maker() if request.report_out else None
    console = make_console()
    plan = read_plan(request.plan) if request.plan else None
    with _progress(make_console(stderr=True), quiet=request.quiet) as progress:
        result = compress(
            request.source,
            cr=request.cr,
            cr_macs=request.cr_macs,
            latency_ratio=request.latency_ratio,
            max_error=request.max_error,
            max_drop=request.max_drop,
            evaluate=request.evaluate,
            calibration=request.calibration,
            objective=_OBJECTIVES[request.objective] if request.objective else None,
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
            _ignore_interrupts()
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
        _progress(make_console(stderr=True), quiet=request.quiet) as progress,
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
        _ignore_interrupts()
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
        objective=_OBJECTIVES[request.objective] if request.objective else None,
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
    with _progress(make_console(stderr=True), quiet=request.quiet) as progress:
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
            _ignore_interrupts()
    if request.json_out:
        write_bytes(dump(merge_to_json(result.report)), request.json_out)
    if not request.quiet:
        print_merge(console, result.report)
    written = (None if request.dry_run else target, request.json_out)
    _print_end(console, request, result.report.warnings, written)


def _measuring(request: Request) -> Measuring:
    """Whoever names a runtime wants time; whoever does not, the accuracy of a size."""
    if request.measure is not None:
        return Measuring.ALWAYS if request.measure else Measuring.NEVER
    return Measuring.NEVER if Runtime(request.runtime) is Runtime.NONE else Measuring.CHEAP


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
        check_target(path, source)


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


@contextlib.contextmanager
def _progress(console: Console, *, quiet: bool) -> Iterator[Progress]:
    """A progress bar on a terminal; nothing where there is none."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with rich.progress.Progress(
        *columns, console=console, transient=True, disable=quiet or not console.is_terminal
    ) as bar:
        task: TaskID = bar.add_task(_STEPS[Step.LOAD], total=None)

        attempt = ""

        def show(step: Step, done: int, total: int) -> None:
            nonlocal attempt
            if step is Step.ATTEMPT:
                attempt = f"Attempt {done} of at most {total}: "
                return
            description = (attempt if step in _OF_AN_ATTEMPT else "") + _STEPS[step]
            bar.update(task, description=description, completed=done, total=total or None)

        yield show
