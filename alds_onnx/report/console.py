"""Progress and reports on the terminal. Piped output is plain text."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import rich.progress
from rich import box
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from alds_onnx.cuts import Cut, Scheme
from alds_onnx.graph.operators import OPERATORS
from alds_onnx.report import accuracy, numbers, words
from alds_onnx.results import Latency, Verification
from alds_onnx.settings import Progress, Step
from alds_onnx.steps.merge import MergedLayer, MergeReport
from alds_onnx.values import Decision, LayerPlan, Report

_PIPED_WIDTH = 160
# Number of layers to mark as the most sensitive ones.
_MARKED = 3
# Rows of other operators with a smaller share of the parameters are left out of the table.
_SMALL_SHARE = 0.01

_STEPS = {
    Step.LOAD: "Reading the model",
    Step.SCORES: "Scoring",
    Step.SPECTRA: "Singular values",
    Step.STATISTICS: "Observing the layers on the data",
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

# Steps that are repeated for every attempt of --max-error and --max-drop.
_OF_AN_ATTEMPT = (Step.SEARCH, Step.TIMING, Step.FACTORIZE, Step.MEASURE)


def make_console(*, stderr: bool = False) -> Console:
    """Make a console that does not cut tables to 80 columns without a terminal."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if console.is_terminal:
        return console
    return Console(stderr=stderr, highlight=False, width=_PIPED_WIDTH)


def print_report(console: Console, report: Report) -> None:
    """Print the layers, the outputs, the summary and the warnings."""
    console.print(_layers(report.plan.layers))
    if report.verification is not None and report.verification.fidelity:
        console.print(_outputs(report.verification))
    console.print(_summary(report))
    print_warnings(console, report.warnings)


def print_warnings(console: Console, warnings: Sequence[str]) -> None:
    """Print each warning on a line."""
    for warning in warnings:
        console.print(Text.assemble(("warning: ", "yellow"), warning))


def new_table(title: str, *columns: str) -> Table:
    """Make a table from a title and headings; a column is aligned right if ">" comes before it."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for name in columns:
        right = name.startswith(">")
        table.add_column(name[right:], justify="right" if right else "left", no_wrap=right)
    return table


def _layers(rows: tuple[LayerPlan, ...]) -> Table:
    on_data = any(row.local_error is not None for row in rows)
    schemes = any(row.cut and row.cut.scheme is not Scheme.ENCODE for row in rows)
    table = new_table(
        "Layers",
        *("layer", "op", "shape", "decision", *(["scheme"] if schemes else [])),
        *(">slices k", ">rank j", ">error"),
        *([">local error", ">output error"] if on_data else []),
        *(">parameters", ">after"),
    )
    sensitive = _most_sensitive(rows)
    total = sum(row.parameters_before for row in rows if not row.counted_by)
    shown = [row for row in rows if not _is_small_holder(row, total)]
    for row in shown:
        cells = _cells(row, sensitive, on_data=on_data, schemes=schemes)
        style = "" if row.decision is Decision.DECOMPOSE else "dim"
        table.add_row(*(Text(cell) for cell in cells), style=style)
    notes = ["* cuts that change the outputs most; --exclude keeps a layer whole"] * bool(sensitive)
    if len(shown) < len(rows):
        hidden = numbers.counted(len(rows) - len(shown), "small row")
        notes.append(f"{hidden} of operators that are not supported: in --json and --plan-out")
    table.caption, table.caption_justify = "\n".join(notes) or None, "left"
    return table


def _is_small_holder(row: LayerPlan, total: int) -> bool:
    """Whether a row of an operator that cannot be decomposed would only make the table longer."""
    return row.op not in OPERATORS and row.parameters_before < _SMALL_SHARE * total


def _most_sensitive(rows: tuple[LayerPlan, ...]) -> frozenset[str]:
    """Name the few layers whose cuts change the model's outputs most."""
    measured = [row for row in rows if row.output_error]
    measured.sort(key=lambda row: row.output_error or 0.0, reverse=True)
    return frozenset(row.name for row in measured[:_MARKED])


def _cells(
    row: LayerPlan, sensitive: frozenset[str], *, on_data: bool, schemes: bool
) -> tuple[str, ...]:
    decision = row.decision.value + (f": {row.reason}" if row.reason else "")
    mark = " *" if row.name in sensitive else "  "
    errors = (numbers.error(row.local_error), numbers.error(row.output_error) + mark)
    return (
        numbers.printable(row.name, 40),
        row.op,
        "x".join(str(n) for n in row.shape),
        numbers.printable(decision, 80),
        *((row.cut.scheme.value if row.cut else "",) if schemes else ()),
        str(row.cut.num_slices) if row.cut else "",
        _ranks(row.cut) if row.cut else "",
        numbers.error(row.error.relative) if row.error else "",
        *((errors if row.cut else ("", "")) if on_data else ()),
        numbers.count(row.parameters_before),
        numbers.count(row.parameters_after) if row.cut else "",
    )


def _ranks(cut: Cut) -> str:
    """Format the rank, or both ranks of Tucker-2."""
    return f"{cut.rank}, {cut.rank_out}" if cut.rank_out else str(cut.rank)


def _outputs(checks: Verification) -> Table:
    table = new_table(
        f"Outputs compared with the original, on {accuracy.samples(checks)}",
        *("output", ">relative L2 error", ">largest error", ">cosine", ">SQNR", ">same top-1"),
    )
    for output in accuracy.outputs(checks):
        name = numbers.printable(output.name, 40)
        if output.note:
            name += f" (not compared: {output.note})"
        cells = ("",) * 5 if output.note else accuracy.cells(output)
        table.add_row(*(Text(cell) for cell in (name, *cells)))
    return table


def _summary(report: Report) -> Table:
    plan, checks = report.plan, report.verification
    table = new_table("Summary", "", ">before", ">after", "")
    before, after = plan.parameters, plan.parameters_after
    removed = numbers.ratio(after, before)
    table.add_row("parameters", numbers.count(before), numbers.count(after), removed)
    if plan.other_parameters:
        other = numbers.count(plan.other_parameters)
        table.add_row("  in no row", other, "", "biases of layers, constants of up to 64 numbers")
    macs = numbers.macs(report.macs_before), numbers.macs(report.macs_after)
    removed = numbers.ratio(report.macs_after, report.macs_before)
    table.add_row("multiply-accumulates", *macs, removed or "shapes unknown")
    sizes = numbers.size(report.bytes_before), numbers.size(report.bytes_after)
    table.add_row("size", *sizes, numbers.ratio(report.bytes_after, report.bytes_before))
    table.add_row(
        "largest layer error", "0", numbers.error(plan.max_relative_error), _errors(report)
    )
    if report.preset is not None:
        table.add_row("ranks chosen for", "", report.preset.runtime.value, _runtime(report))
    if report.timed:
        table.add_row("timed on this machine", "", "yes", "--no-measure makes runs repeatable")
    if report.evidence is not None and report.evidence.price is not None:
        price = f"x {report.evidence.price:.2f}"
        table.add_row("error increase for fast shapes", "", price, "vs. --target none")
    if report.limit_result is not None:
        result = report.limit_result
        reached, on = words.reached(result)
        text = f"{on}; {words.attempts(result)}"
        table.add_row(f"--{result.kind.value} {result.limit:g}", "", reached, text)
    for score in report.scores:
        *values, change = words.score_cells(score)
        on = "" if score.samples is None else f", {score.samples:,} samples"
        table.add_row(numbers.printable(score.name, 40), *values, change + on)
    if checks is not None:
        _add_checks(table, checks, "rewrite is exact")
    return table


def _runtime(report: Report) -> str:
    assert report.preset is not None
    block = report.preset.block
    if block == 1:
        return "all slices and ranks"
    text = f"multiples of {block} in convolutions"
    if report.unaligned:
        count = len(report.unaligned)
        text += f"; {count} layers less fast, for size or accuracy"
    return text


def _errors(report: Report) -> str:
    errors = [row.error for row in report.plan.layers if row.error]
    if not errors:
        return ""
    spectral = max(error.spectral for error in errors)
    bound = max(error.bound for error in errors)
    return f"relative (true spectral {numbers.error(spectral)}, bound {numbers.error(bound)})"


def _add_checks(table: Table, checks: Verification, exact: str) -> None:
    """Add the accuracy, the latency, and the result of the check under the label `exact`."""
    for line in accuracy.lines(checks):
        table.add_row(line.label, line.before, line.after, line.note)
    before, after = checks.latency_before, checks.latency_after
    if before and after:
        how = f"onnxruntime, {words.threads(checks)}, {after.runs} runs"
        text = f"x {checks.latency_ratio:.2f}, {how}"
        table.add_row("latency", _latency(before), _latency(after), text)
    shown = checks.status.value
    if checks.difference is not None:
        shown += f": differs by {checks.difference:.1e}, allowed {checks.tolerance:.0e}"
    table.add_row(exact, "", "", shown)


def _latency(latency: Latency) -> str:
    spread = (latency.high_ms - latency.low_ms) / 2
    return f"{latency.median_ms:.2f} ± {spread:.2f} ms"


def print_merge(console: Console, report: MergeReport) -> None:
    """Print the joined pairs, the summary and the warnings."""
    if report.merged:
        console.print(_merged_layers(report.merged))
    console.print(_merged_summary(report))
    print_warnings(console, report.warnings)


def _merged_layers(merged: tuple[MergedLayer, ...]) -> Table:
    schemes = any(row.cut.scheme is not Scheme.ENCODE for row in merged)
    table = new_table(
        "Merged",
        *("layer", "weight", "shape", *(["scheme"] if schemes else [])),
        *(">slices k", ">rank j", ">parameters", ">after"),
    )
    for row in merged:
        cells = (
            numbers.printable(row.name, 40),
            numbers.printable(row.weight, 40),
            "x".join(str(n) for n in row.shape),
            *((row.cut.scheme.value,) if schemes else ()),
            str(row.cut.num_slices),
            _ranks(row.cut),
            numbers.count(row.parameters_before),
            numbers.count(row.parameters_after),
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _merged_summary(report: MergeReport) -> Table:
    table = new_table("Summary", "", ">before", ">after", "")
    before, after = report.parameters_before, report.parameters_after
    grown = f"x {after / before:.2f}" if before else ""
    table.add_row("parameters", numbers.count(before), numbers.count(after), grown)
    sizes = numbers.size(report.bytes_before), numbers.size(report.bytes_after)
    table.add_row("size", *sizes, f"x {report.bytes_after / report.bytes_before:.2f}")
    if report.verification is not None:
        _add_checks(table, report.verification, "merge is exact")
    return table


@contextlib.contextmanager
def progress_bar(console: Console, *, quiet: bool) -> Iterator[Progress]:
    """Show a progress bar on a terminal, and nothing without one."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with rich.progress.Progress(
        *columns, console=console, transient=True, disable=quiet or not console.is_terminal
    ) as bar:
        task = bar.add_task(_STEPS[Step.LOAD], total=None)
        attempt = ""

        def show(step: Step, done: int, total: int) -> None:
            nonlocal attempt
            if step is Step.ATTEMPT:
                attempt = f"Attempt {done} of at most {total}: "
                return
            description = (attempt if step in _OF_AN_ATTEMPT else "") + _STEPS[step]
            bar.update(task, description=description, completed=done, total=total or None)

        yield show
