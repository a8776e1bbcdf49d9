"""The options that only the command has: which files it writes, and what it prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from alds_onnx.options.declare import Heading, Option, Options


@dataclass(kw_only=True, eq=False)
class Files(Options):
    """Which files are written."""

    merge: Path | None = field(
        default=None,
        metadata=Option(
            flag="--merge",
            heading=Heading.HOW_FAR,
            metavar="OUT.onnx",
            parse=Path,
            help="The way back: join the pairs of a compressed IN.onnx to dense layers that "
            "compute the same. Goes without OUT.onnx.",
            more="Train the result elsewhere, or compress it again. Options that say how to "
            "compress do not go with it.",
        ).metadata,
    )
    save_as_external_data: bool = field(
        default=False,
        metadata=Option(
            flag="--save-as-external-data",
            parse=bool,
            help="Write large weights to a data file beside OUT.onnx; over 2 GiB this is done "
            "anyway.",
        ).metadata,
    )
    sweep_out: Path | None = field(
        default=None,
        metadata=Option(
            flag="--sweep-out",
            metavar="DIR",
            parse=Path,
            help="With --sweep: write the model and the plan of every ratio there.",
        ).metadata,
    )
    csv: Path | None = field(
        default=None,
        metadata=Option(
            flag="--csv",
            metavar="FILE.csv",
            parse=Path,
            help="With --sweep: write the table.",
        ).metadata,
    )
    plan_out: Path | None = field(
        default=None,
        metadata=Option(
            flag="--plan-out", metavar="FILE.json", parse=Path, help="Write the plan."
        ).metadata,
    )
    json: Path | None = field(
        default=None,
        metadata=Option(
            flag="--json",
            metavar="FILE.json",
            parse=Path,
            help="Write plan, measurements and versions.",
        ).metadata,
    )
    report: Path | None = field(
        default=None,
        metadata=Option(
            flag="--report",
            metavar="FILE.html",
            parse=Path,
            help="Write a page with pictures of all this; needs alds-onnx[report].",
        ).metadata,
    )


@dataclass(kw_only=True, eq=False)
class Messages(Options):
    """What is printed."""

    quiet: bool = field(
        default=False,
        metadata=Option(
            flag="--quiet", parse=bool, help="Print nothing but warnings and errors."
        ).metadata,
    )
    traceback: bool = field(
        default=False,
        metadata=Option(
            flag="--traceback", parse=bool, help="Show where an error comes from."
        ).metadata,
    )
