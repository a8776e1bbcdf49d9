"""What the documentation takes from the code when it is built, so that it cannot drift.

A line `<!-- from the code: NAME -->` in a page becomes what the function of that name gives.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from alds_onnx import cli, runtimes
from alds_onnx.cli.help import EPILOG

ROOT = Path(__file__).parent.parent
SCHEMA = ROOT / "alds_onnx" / "plan.schema.json"
#: Files of the repository that pages show, by their place in the site.
_SHOWN = {
    "images/accuracy.png": ROOT / "benchmarks" / "accuracy.png",
    "reference/plan.schema.json": SCHEMA,
}
_MARK = re.compile(r"^<!-- from the code: (\w+) -->$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files that lie elsewhere in the repository."""
    for place, path in _SHOWN.items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Fill in what comes from the code."""
    return _MARK.sub(lambda mark: _SOURCES[mark.group(1)](), markdown)


def command_options() -> str:
    """The options of the command, under the headings of `--help`, with all that is said of them."""
    sections: dict[str, list[str]] = {}
    with click.Context(cli.command, info_name="alds-onnx", max_content_width=10_000) as context:
        for parameter in cli.command.get_params(context):
            record = parameter.get_help_record(context)
            if record is not None:
                heading = getattr(parameter, "heading", None)
                more = getattr(parameter, "more", "")
                text, mark, default = record[1].partition("  [default: ")
                row = _row(f"`{record[0]}`", f"{text} {more}".strip() + mark + default)
                sections.setdefault(heading.value if heading else "About", []).append(row)
    return "\n\n".join(
        "\n".join([f"## {heading}", "", *_head("option", "meaning"), *rows])
        for heading, rows in sections.items()
    )


def command_usage() -> str:
    """The first lines of `--help`, and its examples and exit codes."""
    with click.Context(cli.command, info_name="alds-onnx") as context:
        usage = cli.command.get_usage(context).removeprefix("Usage: ")
    epilog = EPILOG.replace("\b\n", "")
    return f"```text\n{usage}\n```\n\n{cli.command.help}\n\n```text\n{epilog}```"


def targets() -> str:
    """The presets of `--target`."""
    rows = [
        _row(
            f"`{preset.runtime.value}`",
            str(preset.block) if preset.block > 1 else "any",
            _most(preset.most_slices),
            _most(preset.most_product_slices),
            f"{preset.why} ({preset.source})",
        )
        for preset in map(runtimes.preset, runtimes.Runtime)
        if preset.runtime is not runtimes.Runtime.ORT  # it is another one on every machine
    ]
    head = _head("target", "ranks in multiples of", "most slices", "of a product", "why")
    return "\n".join([*head, *rows])


def _most(limit: int | None) -> str:
    return "any" if limit is None else str(limit)


def plan_members() -> str:
    """The members of a plan, from the JSON Schema."""
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    objects = {"The plan": schema}
    objects |= {f"`{name}`": schema["$defs"][name] for name in ("model", "budget", "result")}
    objects["A row of `layers`"] = schema["$defs"]["layer"]
    return "\n\n".join(_members(title, value) for title, value in objects.items())


def _members(title: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        _row(f"`{name}`", "yes" if name in required else "", _described(member))
        for name, member in schema["properties"].items()
    ]
    head = _head("member", "required", "meaning")
    return "\n".join([f"## {title}", "", schema["description"], "", *head, *rows])


def _described(member: Mapping[str, Any]) -> str:
    text = str(member.get("description", "See below."))
    choices = [f"`{choice}`" for choice in member.get("enum", ()) if choice]
    return text + (f" One of {', '.join(choices)}." if choices else "")


def _head(*cells: str) -> list[str]:
    return [_row(*cells), _row(*["---"] * len(cells))]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


_SOURCES: Mapping[str, Callable[[], str]] = {
    "command_options": command_options,
    "command_usage": command_usage,
    "targets": targets,
    "plan_members": plan_members,
}
