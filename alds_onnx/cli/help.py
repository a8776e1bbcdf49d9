"""What `--help` looks like: options under headings, and examples below them."""

from __future__ import annotations

from typing import Any

import click

from alds_onnx.options.declare import Heading

#: What stands below the options in `--help`.
EPILOG = """\b
Examples:
  alds-onnx in.onnx out.onnx --cr 0.5
      remove half of the parameters
  alds-onnx in.onnx out.onnx --cr 0.5 --calibration samples.npz
      and keep the accuracy, with real inputs (arrays named by input)
  alds-onnx in.onnx out.onnx --max-drop 0.5 --evaluate labelled.npz --calibration samples.npz
      as small as half a point of top-1 allows
  alds-onnx in.onnx --sweep 0.1:0.9:0.1
      what each ratio would cost, and which one to take
  alds-onnx in.onnx out.onnx --latency-ratio 0.6 --threads 1
      6 tenths of the time of a run on this machine, on one thread
  alds-onnx in.onnx --cr 0.5 --dry-run --plan-out plan.json
      only decide; edit the plan, then apply it:
  alds-onnx in.onnx out.onnx --plan plan.json
  alds-onnx in.onnx out.onnx --cr 0.3 --exclude '/head/*'
      leave some layers alone
  alds-onnx out.onnx --merge dense.onnx
      the way back: dense layers that compute the same

\b
Exit codes: 0 done and verified (or not verifiable: a warning says so);
1 verification failed, or no compression within --max-error or --max-drop: nothing written;
2 bad usage or input; 130 interrupted.
"""


class GroupedOption(click.Option):
    """An option with the heading under which `--help` lists it, and what it leaves out."""

    def __init__(self, *args: Any, heading: Heading, more: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.heading = heading
        self.more = more


class GroupedCommand(click.Command):
    """A command whose help lists options under headings."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, one section for each heading."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                heading = getattr(parameter, "heading", None)
                title = heading.value if heading else "About"
                sections.setdefault(title, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)
