"""The report on the terminal. Piped output is plain text."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alds_onnx.cuts import Cut, Scheme
from alds_onnx.limits import LimitData, LimitResult, Score
from alds_onnx.report import numbers
from alds_onnx.values import Decision, Latency, LayerPlan, OutputFidelity, Report, Verification

_PIPED_WIDTH = 160
# Number of layers to mark as the most sensitive ones.
_MARKED = 3


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
        console.print(_outputs(report.verification, report.limit_result))
    console.print(_summary(report))
    for warning in report.warnings:
        console.print(Text.assemble(("warning: ", "yellow"), warning))


def new_table(title: str, *columns: tuple[str, bool]) -> Table:
    """Make a table from a title, and for each column its heading and whether to align it right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, title_style="bold")
    for name, right in columns:
        table.add_column(name, justify="right" if right else "left", no_wrap=right)
    return table


def _layers(rows: tuple[LayerPlan, ...]) -> Table:
    on_data = any(row.local_error is not None for row in rows)
    schemes = any(row.cut and row.cut.scheme is not Scheme.ENCODE for row in rows)
    table = new_table(
        "Layers",
        ("layer", False),
        ("op", False),
        ("shape", False),
        ("decision", False),
        *((("scheme", False),) if schemes else ()),
        ("slices k", True),
        ("rank j", True),
        ("error", True),
        *((("local error", True), ("output error", True)) if on_data else ()),
        ("parameters", True),
        ("after", True),
    )
    sensitive = _most_sensitive(rows)
    for row in rows:
        cells = _cells(row, sensitive, on_data=on_data, schemes=schemes)
        table.add_row(*(Text(cell) for cell in cells), style=_style(row))
    if sensitive:
        table.caption = "* cuts that change the outputs most; --exclude keeps a layer whole"
        table.caption_justify = "left"
    return table


def _most_sensitive(rows: tuple[LayerPlan, ...]) -> frozenset[str]:
    """Name the few layers whose cuts change the model's outputs most."""
    measured = [row for row in rows if row.output_error]
    measured.sort(key=lambda row: row.output_error or 0.0, reverse=True)
    return frozenset(row.name for row in measured[:_MARKED])


def _cells(
    row: LayerPlan, sensitive: frozenset[str], *, on_data: bool, schemes: bool
) -> tuple[str, ...]:
    decision = row.decision.value + (f": {row.reason}" if row.reason else "")
    return (
        numbers.printable(row.name, 40),
        row.op,
        "x".join(str(n) for n in row.shape),
        numbers.printable(decision, 80),
        *((row.cut.scheme.value if row.cut else "",) if schemes else ()),
        str(row.cut.num_slices) if row.cut else "",
        ranks(row.cut) if row.cut else "",
        numbers.error(row.error.relative) if row.error else "",
        *(_errors_on_data(row, row.name in sensitive) if on_data else ()),
        numbers.count(row.parameters_before),
        numbers.count(row.parameters_after) if row.cut else "",
    )


def ranks(cut: Cut) -> str:
    """Format the rank, or both ranks of Tucker-2."""
    return f"{cut.rank}, {cut.rank_out}" if cut.rank_out else str(cut.rank)


def _errors_on_data(row: LayerPlan, marked: bool) -> tuple[str, str]:
    if row.cut is None:
        return "", ""
    local, output = numbers.error(row.local_error), numbers.error(row.output_error)
    return local, output + (" *" if marked else "  ")


def _style(row: LayerPlan) -> str:
    return "" if row.decision is Decision.DECOMPOSE else "dim"


def _outputs(verification: Verification, result: LimitResult | None) -> Table:
    on = "random" if verification.random_inputs else "calibration"
    if result is not None and result.data is LimitData.HELD_OUT:
        on = "held-out calibration"
    title = f"Outputs compared with the original, on {verification.samples} {on} samples"
    table = new_table(
        title,
        ("output", False),
        ("relative L2 error", True),
        ("largest error", True),
        ("cosine", True),
        ("SQNR", True),
        ("same top-1", True),
    )
    for output in verification.fidelity:
        table.add_row(*(Text(cell) for cell in _fidelity(output)))
    return table


def _fidelity(output: OutputFidelity) -> tuple[str, ...]:
    name = numbers.printable(output.name, 40)
    if output.note:
        return (f"{name} (not compared: {output.note})", "", "", "", "", "")
    agreement = output.top1_agreement
    return (
        name,
        numbers.error(output.relative_l2),
        numbers.error(output.max_abs),
        f"{output.cosine:.6f}",
        f"{output.sqnr_db:.1f} dB",
        "" if agreement is None else numbers.percent(agreement),
    )


def _summary(report: Report) -> Table:
    plan, checks = report.plan, report.verification
    table = new_table("Summary", ("", False), ("before", True), ("after", True), ("", False))
    table.add_row(
        "parameters",
        numbers.count(plan.parameters),
        numbers.count(plan.parameters_after),
        numbers.ratio(plan.parameters_after, plan.parameters),
    )
    table.add_row(
        "multiply-accumulates",
        numbers.macs(report.macs_before),
        numbers.macs(report.macs_after),
        numbers.ratio(report.macs_after, report.macs_before) or "shapes unknown",
    )
    table.add_row(
        "size",
        numbers.size(report.bytes_before),
        numbers.size(report.bytes_after),
        numbers.ratio(report.bytes_after, report.bytes_before),
    )
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
        _add_limit(table, report.limit_result)
    for score in report.scores:
        table.add_row(*_score(score))
    if checks is not None:
        add_checks(table, checks, "rewrite is exact")
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


def _add_limit(table: Table, result: LimitResult) -> None:
    on = result.data.value
    if result.samples is not None:
        on = f"{result.samples:,} {on}"
    unit = " points" if result.data is LimitData.LABELLED else ""
    trials = f"{len(result.trials)} attempt" + ("" if len(result.trials) == 1 else "s")
    table.add_row(
        f"--{result.kind.value} {result.limit:g}",
        "",
        numbers.error(result.reached) + unit,
        f"on {on}; the best of {trials}",
    )


def _score(score: Score) -> tuple[str, ...]:
    if score.samples is None:
        name, change = numbers.printable(score.name, 40), f"{0 - score.drop:+.4g}"
        return name, f"{score.before:.6g}", f"{score.after:.6g}", change
    before, after = numbers.percent(score.before), numbers.percent(score.after)
    return score.name, before, after, f"{0 - score.drop:+.2f} points, {score.samples:,} samples"


def _errors(report: Report) -> str:
    errors = [row.error for row in report.plan.layers if row.error]
    if not errors:
        return ""
    spectral = max(error.spectral for error in errors)
    bound = max(error.bound for error in errors)
    return f"relative (true spectral {numbers.error(spectral)}, bound {numbers.error(bound)})"


def add_checks(table: Table, checks: Verification, exact: str) -> None:
    """Add the output error, the latency, and the result of the check under the label `exact`."""
    compared = [output.relative_l2 for output in checks.fidelity if not output.note]
    if compared:
        table.add_row(
            "output error", "0", numbers.error(max(compared)), "relative L2, worst output"
        )
    if checks.latency_before and checks.latency_after:
        threads = f"{checks.threads} thread" + ("s" if checks.threads > 1 else "")
        table.add_row(
            "latency",
            _latency(checks.latency_before),
            _latency(checks.latency_after),
            f"x {checks.latency_ratio:.2f}, onnxruntime, {threads}, "
            f"{checks.latency_after.runs} runs",
        )
    shown = checks.status.value
    if checks.difference is not None:
        shown += f": differs by {checks.difference:.1e}, allowed {checks.tolerance:.0e}"
    table.add_row(exact, "", "", shown)


def _latency(latency: Latency) -> str:
    spread = (latency.high_ms - latency.low_ms) / 2
    return f"{latency.median_ms:.2f} ± {spread:.2f} ms"
