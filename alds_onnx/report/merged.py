"""The report of a merge on the terminal. Piped output is plain text."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alds_onnx.cuts import Scheme
from alds_onnx.report import numbers
from alds_onnx.report.console import add_checks, new_table, ranks
from alds_onnx.steps.merge import MergedLayer, MergeReport


def print_merge(console: Console, report: MergeReport) -> None:
    """Print the joined pairs, the summary and the warnings."""
    if report.merged:
        console.print(_layers(report.merged))
    console.print(_summary(report))
    for warning in report.warnings:
        console.print(Text.assemble(("warning: ", "yellow"), warning))


def _layers(merged: tuple[MergedLayer, ...]) -> Table:
    schemes = any(row.cut.scheme is not Scheme.ENCODE for row in merged)
    table = new_table(
        "Merged",
        ("layer", False),
        ("weight", False),
        ("shape", False),
        *((("scheme", False),) if schemes else ()),
        ("slices k", True),
        ("rank j", True),
        ("parameters", True),
        ("after", True),
    )
    for row in merged:
        cells = (
            numbers.printable(row.name, 40),
            numbers.printable(row.weight, 40),
            "x".join(str(n) for n in row.shape),
            *((row.cut.scheme.value,) if schemes else ()),
            str(row.cut.num_slices),
            ranks(row.cut),
            numbers.count(row.parameters_before),
            numbers.count(row.parameters_after),
        )
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _summary(report: MergeReport) -> Table:
    table = new_table("Summary", ("", False), ("before", True), ("after", True), ("", False))
    before, after = report.parameters_before, report.parameters_after
    grown = f"x {after / before:.2f}" if before else ""
    table.add_row("parameters", numbers.count(before), numbers.count(after), grown)
    sizes = numbers.size(report.bytes_before), numbers.size(report.bytes_after)
    table.add_row("size", *sizes, f"x {report.bytes_after / report.bytes_before:.2f}")
    if report.verification is not None:
        add_checks(table, report.verification, "merge is exact")
    return table
