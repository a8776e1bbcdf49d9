"""An option is declared once: its keyword, its flag, its help and its type come from there."""

from __future__ import annotations

import re
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any

import click
import pytest

from alds_onnx.cli import command
from alds_onnx.cli.arguments import GROUPS, Files, Messages
from alds_onnx.options.declare import Converted, Options, declared, given_default, option, shared
from alds_onnx.settings import (
    CompressOptions,
    MergeOptions,
    MergeSettings,
    Settings,
    SweepOptions,
)
from alds_onnx.values import Objective

DECLARED = [pair for group in GROUPS for pair in declared(group)]
FLAGS = [flag for _, record in DECLARED for flag in record.flags]


@dataclass(kw_only=True, eq=False)
class Example(Options):
    """A group with one option of each kind."""

    plain: int = option(1, flag="--plain N")
    words: Converted[list[str], tuple[str, ...]] = option(
        Converted([], lambda _, given: tuple(given))
    )
    twice: Converted[int | None, int] = option(
        Converted(None, lambda group, given: given or 2 * group.plain)
    )
    inner: int = 0


def test_an_option_is_held_as_it_is_converted() -> None:
    given = ["a"]
    example = Example(words=given)
    given.append("b")
    assert (example.plain, example.words, example.twice) == (1, ("a",), 2)
    assert Example(plain=4).twice == 8
    assert Example(plain=4, twice=3).twice == 3
    assert Example().words == ()


@pytest.mark.parametrize("name", ["plain", "words", "inner"])
def test_an_option_is_set_once(name: str) -> None:
    with pytest.raises(FrozenInstanceError, match=name):
        setattr(Example(), name, 3)


def test_a_copy_with_a_change_keeps_the_others() -> None:
    copied = replace(Example(plain=2, words=["a"]), plain=5)
    assert (copied.plain, copied.words, copied.twice) == (5, ("a",), 4)


def test_what_is_declared() -> None:
    assert [f.name for f, _ in declared(Example)] == ["plain", "words", "twice"]
    assert [given_default(f.default) for f, _ in declared(Example)] == [1, [], None]


def test_values_are_handed_over_by_name() -> None:
    options = SweepOptions("in.onnx", [0.5], seed=3, threads=2, include=["a"], cache="c")
    settings = Settings(sweep=(0.5,), **shared(options, Settings))
    assert (settings.seed, settings.threads, settings.include) == (3, 2, ("a",))
    assert settings.cache == options.cache
    assert set(shared(options, MergeSettings)) < set(shared(options, Settings))


@pytest.mark.parametrize(
    ("given", "objective"),
    [
        ({}, Objective.MAX_RELATIVE_ERROR),
        ({"calibration": "samples.npz"}, Objective.SUM_OUTPUT_ERROR),
        (
            {"calibration": "samples.npz", "objective": Objective.MAX_OUTPUT_ERROR},
            Objective.MAX_OUTPUT_ERROR,
        ),
    ],
)
def test_the_objective_follows_from_the_data(given: Any, objective: Objective) -> None:
    assert Settings(cr=0.5, **given).objective is objective


def test_no_two_options_have_the_same_name() -> None:
    names = [found.name for found, _ in DECLARED]
    assert len(set(names)) == len(names)
    assert len(set(FLAGS)) == len(FLAGS)


def test_every_option_is_on_the_command_line() -> None:
    parameters = {p.name: p for p in command.params if isinstance(p, click.Option)}
    for found, record in DECLARED:
        if record.flags:
            parameter = parameters.pop(found.name)
            assert (*parameter.opts, *parameter.secondary_opts) == record.flags
    assert list(parameters) == ["version"]


def test_every_option_of_a_function_is_one_of_the_command() -> None:
    of_the_command = {found.name for found, record in DECLARED}
    for options in (CompressOptions, SweepOptions, MergeOptions):
        assert {found.name for found, _ in declared(options)} - of_the_command == {"model"}


def flags_in(*texts: str) -> set[str]:
    return set(re.findall(r"--[a-z][a-z-]*", " ".join(texts)))


def test_texts_name_only_options_that_exist() -> None:
    for found, record in DECLARED:
        assert flags_in(record.help, record.python, record.more) <= set(FLAGS), found.name


def test_texts_for_python_name_no_option_that_only_the_command_has() -> None:
    of_the_command = {f for group in (Files, Messages) for _, o in declared(group) for f in o.flags}
    for options in (CompressOptions, SweepOptions):
        for found, record in declared(options):
            shown = flags_in(record.python or record.help, record.more)
            assert not shown & of_the_command, found.name


def test_a_text_of_help_has_at_most_three_lines() -> None:
    """On a terminal of 80 columns; the words that click adds, such as a default, count too."""
    context = click.Context(command, info_name="alds-onnx", terminal_width=80)
    lines = command.get_help(context).splitlines()
    start, end = lines.index("How far:"), lines.index("About:")
    counts: dict[str, int] = {}
    flag = ""
    for line in lines[start:end]:
        if line.startswith("  --"):
            flag = line.split()[0]
            # A long option stands on a line of its own.
            counts[flag] = int("  " in line.strip())
        elif line.startswith("   "):
            counts[flag] += 1
    assert len(counts) == len([record for _, record in DECLARED if record.flags])
    assert {flag: count for flag, count in counts.items() if not 1 <= count <= 3} == {}
