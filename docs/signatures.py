"""Shows mkdocstrings the signature and the docstring that functions of options have at run time."""

from __future__ import annotations

import importlib
import inspect
from enum import Enum
from typing import Any

import griffe


class RuntimeSignatures(griffe.Extension):
    """Replaces what the source says of a function decorated by `takes`, where it is not written."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """Take parameters and documentation from the imported function."""
        if not any(str(decorator.value).startswith("takes(") for decorator in func.decorators):
            return
        found = getattr(importlib.import_module(func.module.path), func.name)
        func.parameters = griffe.Parameters(
            *(_parameter(value) for value in inspect.signature(found).parameters.values())
        )
        assert func.docstring is not None
        func.docstring.value = inspect.getdoc(found) or ""


def _parameter(found: inspect.Parameter) -> griffe.Parameter:
    is_keyword = found.kind is inspect.Parameter.KEYWORD_ONLY
    kinds = griffe.ParameterKind
    return griffe.Parameter(
        found.name,
        annotation=str(found.annotation),
        kind=kinds.keyword_only if is_keyword else kinds.positional_or_keyword,
        default=None if found.default is inspect.Parameter.empty else _shown(found.default),
    )


def _shown(default: object) -> str:
    """A default as it would be written."""
    if isinstance(default, Enum):
        return f"{type(default).__name__}.{default.name}"
    return getattr(default, "__name__", repr(default))
