"""The options that only the command has: which files it writes, and what it prints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from alds_onnx.options.declare import Heading, Options, option


@dataclass(kw_only=True, eq=False)
class Files(Options):
    """Which files are written."""

    merge: Path | None = option(
        None,
        flag="--merge OUT.onnx",
        heading=Heading.HOW_FAR,
        parse=Path,
        help="The way back: join the pairs of a compressed IN.onnx to dense layers that compute "
        "the same. Goes without OUT.onnx.",
        more="Train the result elsewhere, or compress it again. Options that say how to compress "
        "do not go with it.",
    )
    save_as_external_data: bool = option(
        False,
        flag="--save-as-external-data",
        parse=bool,
        help="Write large weights to a data file beside OUT.onnx; over 2 GiB this is done anyway.",
    )
    sweep_out: Path | None = option(
        None,
        flag="--sweep-out DIR",
        parse=Path,
        help="With --sweep: write the model and the plan of every ratio there.",
    )
    csv: Path | None = option(
        None,
        flag="--csv FILE.csv",
        parse=Path,
        help="With --sweep: write the table.",
    )
    plan_out: Path | None = option(
        None,
        flag="--plan-out FILE.json",
        parse=Path,
        help="Write the plan.",
    )
    json: Path | None = option(
        None,
        flag="--json FILE.json",
        parse=Path,
        help="Write plan, measurements and versions.",
    )
    report: Path | None = option(
        None,
        flag="--report FILE.html",
        parse=Path,
        help="Write a page with pictures of all this; needs alds-onnx[report].",
    )


@dataclass(kw_only=True, eq=False)
class Messages(Options):
    """What is printed."""

    quiet: bool = option(
        False,
        flag="--quiet",
        parse=bool,
        help="Print nothing but warnings and errors.",
    )
    traceback: bool = option(
        False,
        flag="--traceback",
        parse=bool,
        help="Show where an error comes from.",
    )
