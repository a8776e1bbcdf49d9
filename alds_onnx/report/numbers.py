"""Formatting numbers and names."""

from __future__ import annotations

import math


def percent(fraction: float) -> str:
    """Format a fraction as a percentage, such as 50.02 %."""
    return f"{100 * fraction:.2f} %"


def count(number: int | None) -> str:
    """Format a count with thousands separators; a dash if it is not known."""
    return "-" if number is None else f"{number:,}"


def counted(number: int, what: str) -> str:
    """Give a number of things, such as 2 threads."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def macs(number: int | None) -> str:
    """Format multiply-accumulates in millions."""
    return "-" if number is None else f"{number / 1e6:,.2f} M"


def size(number: int) -> str:
    """Format bytes in KiB, MiB or GiB."""
    for unit, factor in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if number >= factor:
            return f"{number / factor:,.2f} {unit}"
    return f"{number / 1024:,.1f} KiB"


def error(value: float | None) -> str:
    """Format a relative error with four digits."""
    if value is None:
        return "-"
    return f"{value:.4g}" if math.isfinite(value) else "not finite"


def ratio(after: int | None, before: int | None) -> str:
    """Format the removed and the kept fraction of a quantity."""
    if not before or after is None:
        return ""
    return f"{percent(1 - after / before)} removed, {percent(after / before)} kept"


def printable(name: str, width: int = 60) -> str:
    """Make a name from a model safe to print: no control characters, at most `width` letters."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
    return shown if len(shown) <= width else f"{shown[: width - 13]}...{shown[-10:]}"
