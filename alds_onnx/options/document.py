"""The documentation and the signature of a function that takes options, from the declarations."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import ParamSpec, TypeVar

from alds_onnx.options.declare import Option, Options, declared, given_default

_P = ParamSpec("_P")
_T = TypeVar("_T", bound=Options)
_R = TypeVar("_R")

_WRAPPER = textwrap.TextWrapper(92, break_on_hyphens=False)
_FLAG = re.compile(r"--[a-z][a-z-]*")
# The sections of numpydoc that may follow the parameters.
_NEXT_SECTION = re.compile(r"^(Returns|Yields|Raises|Notes|Examples)\n-+$", re.MULTILINE)


def takes(
    options: Callable[_P, _T],
) -> Callable[[Callable[[_T], _R]], Callable[_P, _R]]:
    """Make a function of one group of options a function of the options as keywords.

    Its signature, which editors and type checkers see too, is that of the group's constructor; the
    section "Parameters" is added to its docstring.
    """
    assert isinstance(options, type)

    def decorate(function: Callable[[_T], _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            return function(options(*args, **kwargs))

        returned = inspect.signature(function).return_annotation
        parameters = list(_parameters(options))
        signature = inspect.Signature(parameters, return_annotation=returned)
        call.__signature__ = signature  # type: ignore[attr-defined] # inspect reads it
        call.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": returned}
        call.__doc__ = _with_parameters(inspect.getdoc(function) or "", options)
        return call

    return decorate


def in_python(option: Option, keywords: Mapping[str, str]) -> str:
    """What the documentation of Python says about an option.

    `keywords` gives the keyword for a flag, where it is not simply the same words.
    """

    def keyword(flag: re.Match[str]) -> str:
        same = flag.group().removeprefix("--").replace("-", "_")
        return f"`{keywords.get(flag.group(), same)}`"

    return _FLAG.sub(keyword, f"{option.python or option.help} {option.more}".strip())


def _with_parameters(doc: str, options: type[Options]) -> str:
    """A docstring with the section on parameters, before the sections that come after it."""
    section = "\n".join(["Parameters", "----------", *_entries(options)])
    following = _NEXT_SECTION.search(doc)
    place = following.start() if following else len(doc)
    return f"{doc[:place].rstrip()}\n\n{section}\n\n{doc[place:]}".rstrip() + "\n"


def _entries(options: type[Options]) -> Iterator[str]:
    keywords = {flag: f.name for f, option in declared(options) for flag in option.flags}
    for field, option in declared(options):
        yield field.name
        yield textwrap.indent(_WRAPPER.fill(in_python(option, keywords)), "    ")


def _parameters(options: type[Options]) -> Iterator[inspect.Parameter]:
    for parameter in inspect.signature(options).parameters.values():
        default = given_default(parameter.default)
        yield parameter.replace(default=default, annotation=_given(str(parameter.annotation)))


def _given(annotation: str) -> str:
    """The type in which an option is given: the first one of `Converted[..., ...]`."""
    tree = ast.parse(annotation, mode="eval").body
    if isinstance(tree, ast.Subscript) and ast.unparse(tree.value) == "Converted":
        assert isinstance(tree.slice, ast.Tuple)
        return ast.unparse(tree.slice.elts[0])
    return annotation
