"""What the command line says: every argument and option, and the request that it becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from alds_onnx.cuts import Scheme
from alds_onnx.evaluate.sessions import Provider
from alds_onnx.options import Ratios, Schemes, Shape, option
from alds_onnx.runtimes import Runtime
from alds_onnx.values import Objective, SearchMethod

_F = TypeVar("_F", bound=Callable[..., Any])

#: What `--objective` can be.
OBJECTIVES = {"sum": Objective.SUM_OUTPUT_ERROR, "max": Objective.MAX_OUTPUT_ERROR}

_PATH = click.Path(path_type=Path)

_ARGUMENTS: tuple[Callable[[Any], Any], ...] = (
    click.argument("source", metavar="IN.onnx", type=_PATH),
    click.argument("target", metavar="OUT.onnx", type=_PATH, required=False),
    option(
        "How far",
        "--cr",
        type=float,
        metavar="FRACTION",
        help="Fraction of the model's parameters to remove, such as 0.5.",
    ),
    option(
        "How far",
        "--cr-macs",
        type=float,
        metavar="FRACTION",
        help="Fraction of the multiply-accumulates of one run to remove; instead of --cr or with "
        "it.",
    ),
    option(
        "How far",
        "--latency-ratio",
        type=float,
        metavar="RATIO",
        help="Part of the time of one run that may be left, in onnxruntime on this machine with "
        "--threads, such as 0.6; instead of --cr and --cr-macs or with them.",
    ),
    option(
        "How far",
        "--plan",
        type=_PATH,
        metavar="FILE.json",
        help="Instead of --cr: apply exactly the cuts of this plan.",
    ),
    option(
        "How far",
        "--max-error",
        type=float,
        metavar="E",
        help="Instead of --cr: remove as much as possible while the relative L2 error of every "
        "output is at most E, on data that the fit does not see: every fifth run of "
        "--calibration, or random inputs.",
    ),
    option(
        "How far",
        "--max-drop",
        type=float,
        metavar="POINTS",
        help="Instead of --cr: remove as much as possible while top-1 falls by at most so many "
        "percentage points on the samples of --evaluate.",
    ),
    option(
        "How far",
        "--sweep",
        type=Ratios(),
        help="Instead of --cr: compress by each of several ratios, such as 0.1:0.9:0.1 or "
        "0.3,0.5, compare what they cost, and suggest one. OUT.onnx is optional then; it gets the "
        "suggested model. With --calibration each is fitted once, where --cr chooses its ranks a "
        "second time.",
    ),
    option(
        "How far",
        "--merge",
        type=_PATH,
        metavar="OUT.onnx",
        help="The way back: join the pairs of a compressed IN.onnx to dense layers that compute "
        "the same, to train them elsewhere or to compress them again. Goes without OUT.onnx and "
        "all that decides how to compress.",
    ),
    option(
        "Which layers, which ranks",
        "--search",
        type=click.Choice([s.value for s in SearchMethod]),
        default=SearchMethod.EXACT.value,
        show_default=True,
        help="exact: the global optimum; iterative: Algorithm 1 of the ALDS paper.",
    ),
    option(
        "Which layers, which ranks",
        "--target",
        "runtime",
        type=click.Choice([r.value for r in Runtime]),
        default=Runtime.ORT.value,
        show_default=True,
        help="What will run OUT.onnx: only slices and ranks that it is fast at are chosen. ort: "
        "onnxruntime on this machine's processor; none: all, as in the paper, which keeps most "
        "accuracy and is often slower than IN.onnx.",
    ),
    option(
        "Which layers, which ranks",
        "--schemes",
        type=Schemes(),
        help="What a convolution may become, comma-separated: encode (kh x kw, 1x1; the paper's), "
        "decode (1x1, kh x kw), split-height (kh x 1, 1 x kw), split-width (1 x kw, kh x 1), "
        "tucker2 (1x1, kh x kw, 1x1), or all. The search chooses for each layer. Default: all; "
        "encode with --target none, and with --calibration, --latency-ratio and --search "
        "iterative, which know no other.",
    ),
    option(
        "Which layers, which ranks",
        "--measure/--no-measure",
        default=None,
        help="Time the cuts of each layer in onnxruntime on this machine, and choose none that is "
        "slower than the layer. Default: with --target ort, if it is cheap, up to about half a "
        "minute. --no-measure: the same input and options give the same bytes.",
    ),
    option(
        "Which layers, which ranks",
        "--allow-slower",
        is_flag=True,
        help="Choose by error and budget alone; of slower cuts, only say which they are.",
    ),
    option(
        "Which layers, which ranks",
        "--remeasure",
        is_flag=True,
        help="Do not use times that an earlier run has kept.",
    ),
    option(
        "Which layers, which ranks",
        "--include",
        multiple=True,
        metavar="PATTERN",
        help="Decompose only layers whose names match (glob; repeatable).",
    ),
    option(
        "Which layers, which ranks",
        "--exclude",
        multiple=True,
        metavar="PATTERN",
        help="Keep layers whose names match (glob; repeatable).",
    ),
    option(
        "Which layers, which ranks",
        "--seed",
        type=int,
        default=0,
        show_default=True,
        help="Seed of random starts and random inputs.",
    ),
    option(
        "Real data",
        "--calibration",
        type=_PATH,
        metavar="PATH",
        help="Real inputs without labels: an .npz with arrays named by input, or a folder of .npz "
        "or .npy. Ranks are then chosen by measured output errors and factors fitted to the data, "
        "which keeps far more accuracy.",
    ),
    option(
        "Real data",
        "--evaluate",
        type=_PATH,
        metavar="LABELLED.npz",
        help="Print top-1 and top-5 before and after: arrays named by input, and class numbers "
        "from 0 in the array 'labels'. Use samples that are not in --calibration. A dry run "
        "scores nothing, unless --max-drop needs it.",
    ),
    option(
        "Real data",
        "--objective",
        type=click.Choice(list(OBJECTIVES)),
        help="With --calibration: make the sum (default) or the maximum of the output errors "
        "small.",
    ),
    option(
        "Checks",
        "--input-shape",
        "input_shapes",
        type=Shape(),
        multiple=True,
        help="Shape of an input with free sizes (repeatable).",
    ),
    option(
        "Checks",
        "--provider",
        type=click.Choice([p.value for p in Provider]),
        default=Provider.CPU.value,
        show_default=True,
        help="Where onnxruntime runs the models.",
    ),
    option(
        "Checks",
        "--threads",
        type=int,
        metavar="N",
        help="Threads; default: all processors. The model written does not depend on it.",
    ),
    option(
        "Output",
        "--save-as-external-data",
        is_flag=True,
        help="Write large weights to a data file beside OUT.onnx; over 2 GiB this is done anyway.",
    ),
    option(
        "Output",
        "--sweep-out",
        type=_PATH,
        metavar="DIR",
        help="With --sweep: write the model and the plan of every ratio there.",
    ),
    option(
        "Output",
        "--csv",
        "csv_out",
        type=_PATH,
        metavar="FILE.csv",
        help="With --sweep: write the table.",
    ),
    option("Output", "--plan-out", type=_PATH, metavar="FILE.json", help="Write the plan."),
    option(
        "Output",
        "--json",
        "json_out",
        type=_PATH,
        metavar="FILE.json",
        help="Write plan, measurements and versions.",
    ),
    option(
        "Output",
        "--report",
        "report_out",
        type=_PATH,
        metavar="FILE.html",
        help="Write a page with pictures of all this; needs alds-onnx[report].",
    ),
    option(
        "Output",
        "--cache",
        type=_PATH,
        metavar="DIR",
        help="Keep error curves and measurements there, by what they depend on: another run on "
        "the same model and data starts at the search. DIR may be deleted at any time.",
    ),
    option(
        "Output", "--dry-run", is_flag=True, help="Decide and report; check and write no model."
    ),
    option("Output", "--quiet", is_flag=True, help="Print nothing but warnings and errors."),
    option("Output", "--traceback", is_flag=True, help="Show where an error comes from."),
    click.version_option(package_name="alds-onnx", message="alds-onnx %(version)s"),
)


def arguments(function: _F) -> _F:
    """Add all arguments and options to a command, in their order."""
    for add in reversed(_ARGUMENTS):
        function = add(function)
    return function


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
