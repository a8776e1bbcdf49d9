"""The report as one self-contained HTML file with plots.

The packages that draw the plots belong to the extra `alds-onnx[report]`; this module cannot be
imported without them. All names come from the model and are not trusted. Jinja2 escapes them in the
page and `tables.embedded` in the data, and the page's script sets them as text only. The policy in
the page's head allows the browser to run only our scripts, and to load nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from alds_onnx.report import accuracy, numbers, plots, swept, words
from alds_onnx.report.origin import Origin
from alds_onnx.report.tables import embedded, tables
from alds_onnx.sweeps import Sweep
from alds_onnx.values import Report

_FOLDER = files("alds_onnx.report") / "templates"
_LONGEST_TEXT = 1000


def report_to_html(made: Report | Sweep, origin: Origin) -> bytes:
    """Render the page as UTF-8 text.

    Plots without data are left out. For a sweep, the page shows one point and compares it with the
    others.
    """
    sweep, report = (made, made.shown.report) if isinstance(made, Sweep) else (None, made)
    scripts = [plots.script(), _read("report.js")]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters: dict[str, Callable[..., str]] = {
        "printable": lambda text: numbers.printable(text, _LONGEST_TEXT),
        "name": lambda text: numbers.printable(text, words.LONGEST_NAME),
        "count": numbers.count,
        "error": numbers.error,
        "percent": numbers.percent,
    }
    environment.filters |= filters
    page = environment.from_string(_read("report.html.j2")).render(
        report=report,
        plan=report.plan,
        checks=report.verification,
        origin=origin,
        words=words,
        accuracy=accuracy,
        sweep=sweep,
        swept=swept,
        tables=(found := tables(report, sweep)),
        data=Markup(embedded(found)),
        specifications=Markup(embedded(plots.specifications(on_data=found["onData"]))),
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
        style=Markup(_read("report.css")),
    )
    return page.encode()


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _policy(scripts: list[str]) -> str:
    """Write the content security policy: run these scripts, use the page's styles, load nothing."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()) for script in scripts)
    allowed = " ".join(f"'sha256-{digest.decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
