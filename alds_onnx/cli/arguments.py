"""click's parameters, made from the declarations, and the request that a command line becomes.

The options that only the command has are declared here: which files it writes, what it prints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from alds_onnx.cli.help import GroupedOption
from alds_onnx.options.amount import Amount, Ratios
from alds_onnx.options.choice import Search, Selection, Timing
from alds_onnx.options.declare import Heading, Option, Options, declared, given_default, option
from alds_onnx.options.run import Data, Execution, Reuse

_PATH = click.Path(path_type=Path)
_TYPES: Mapping[str, Any] = {"bool": bool, "float": float, "int": int, "Path": _PATH}


@dataclass(kw_only=True, eq=False)
class Files(Options):
    """Which files are written."""

    merge: Path | None = option(
        None,
        flag="--merge OUT.onnx",
        heading=Heading.HOW_FAR,
        help="The way back: join the pairs of a compressed IN.onnx to dense layers that compute "
        "the same. Goes without OUT.onnx.",
        more="Train the result elsewhere, or compress it again. Options that say how to compress "
        "do not go with it.",
    )
    save_as_external_data: bool = option(
        False,
        flag="--save-as-external-data",
        help="Write large weights to a data file beside OUT.onnx; over 2 GiB this is done anyway.",
    )
    sweep_out: Path | None = option(
        None,
        flag="--sweep-out DIR",
        help="With --sweep: write the model and the plan of every ratio there.",
    )
    csv: Path | None = option(None, flag="--csv FILE.csv", help="With --sweep: write the table.")
    plan_out: Path | None = option(None, flag="--plan-out FILE.json", help="Write the plan.")
    json: Path | None = option(
        None,
        flag="--json FILE.json",
        help="Write plan, measurements and versions.",
    )
    report: Path | None = option(
        None,
        flag="--report FILE.html",
        help="Write a page with pictures of all this; needs alds-onnx[report].",
    )


@dataclass(kw_only=True, eq=False)
class Messages(Options):
    """What is printed."""

    quiet: bool = option(False, flag="--quiet", help="Print nothing but warnings and errors.")
    traceback: bool = option(False, flag="--traceback", help="Show where an error comes from.")


#: The groups in the order of `--help`, which lists their options under headings.
GROUPS = (Amount, Ratios, Search, Timing, Selection, Data, Files, Reuse, Execution, Messages)


class Choices(click.Choice[str]):
    """Words that stand for values."""

    def __init__(self, values: Mapping[str, object]) -> None:
        super().__init__(list(values))
        self._values = values

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value that a word stands for."""
        return self._values[super().convert(value, param, ctx)]


class Parsed(click.ParamType[Any]):
    """A text that a function converts."""

    def __init__(self, parse: Callable[[str], object]) -> None:
        self.name = "TEXT"
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert, or say why not."""
        try:
            return self._parse(str(value))
        except ValueError as e:
            self.fail(str(e), param, ctx)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The command line, parsed but not yet checked.

    `values` are those of all options by keyword; one that was not given is None, unless `--help`
    shows its default. `given` says how what was given is called on the command line, by keyword.
    """

    argv: tuple[str, ...]
    source: Path
    output: Path | None
    files: Files
    messages: Messages
    values: Mapping[str, Any]
    given: Mapping[str, str]

    def keywords(self, options: type[Options]) -> dict[str, Any]:
        """The values that a Python function takes; reads the files that it does not read."""
        return {
            field.name: option.load(value) if option.load else value
            for field, option in declared(options)
            if (value := self.values.get(field.name)) is not None
        }


def make_parameters() -> list[click.Parameter]:
    """The arguments and options of the command."""
    found = [
        _parameter(field, option, option.heading or group.heading)
        for group in GROUPS
        for field, option in declared(group)
        if option.flag
    ]
    return [
        click.Argument(["source"], metavar="IN.onnx", type=_PATH),
        click.Argument(["output"], metavar="OUT.onnx", type=_PATH, required=False),
        *sorted(found, key=lambda option: list(Heading).index(option.heading)),
    ]


def _parameter(field: Field[Any], option: Option, heading: Heading) -> GroupedOption:
    default = given_default(field.default)
    kind = _type(field, option)
    words = [word for word, value in (option.choices or {}).items() if value == default]
    shown = words[0] if words else default if type(default) is int else None
    return GroupedOption(
        ["/".join(option.flags), field.name],
        heading=heading,
        more=option.more,
        type=kind,
        metavar=option.metavar,
        is_flag=kind is bool,
        default=False if default is False else shown,
        show_default=shown is not None,
        multiple=option.repeatable,
        help=option.help,
    )


def _type(field: Field[Any], option: Option) -> Any:
    if option.choices is not None:
        return Choices(option.choices)
    name = getattr(option.parse, "__name__", str(field.type).removesuffix(" | None"))
    return _TYPES.get(name) or (Parsed(option.parse) if option.parse else str)


def make_request(context: click.Context, values: Mapping[str, Any]) -> Request:
    """What click parsed, as a request."""
    return Request(
        argv=context.obj,
        source=values["source"],
        output=values["output"],
        files=Files(**_of(Files, values)),
        messages=Messages(**_of(Messages, values)),
        values=values,
        given=dict(_given(context)),
    )


def _of(options: type[Options], values: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: values[field.name] for field, _ in declared(options)}


def _given(context: click.Context) -> Iterator[tuple[str, str]]:
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            is_option = isinstance(parameter, click.Option)
            yield name, parameter.opts[-1] if is_option else str(parameter.metavar)
