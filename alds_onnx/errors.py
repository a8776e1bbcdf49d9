"""The error tree. Each class holds the exit code of the command line.

A message is one line that says what is wrong, where, and what to do about it.
"""

from __future__ import annotations


class AldsError(Exception):
    """Base class of all errors that the package raises on purpose."""

    exit_code = 1

    def __str__(self) -> str:
        """Keep the message on one line, whatever a library or a file put into it."""
        return " ".join(super().__str__().split())


class UsageError(AldsError):
    """Options that make no sense, or contradict each other."""

    exit_code = 2


class InputError(AldsError):
    """A file that cannot be used."""

    exit_code = 2


class ModelError(InputError):
    """A file that is not a model, or a model that breaks the rules of ONNX."""


class PlanError(InputError):
    """A plan that cannot be read or does not fit the model."""


class DataError(InputError):
    """Data that cannot be read or does not fit the model."""


class BudgetError(AldsError):
    """A budget that no compression of the model keeps."""

    exit_code = 2


class LimitError(AldsError):
    """No compression stays within the requested limit; nothing is written."""


class VerificationError(AldsError):
    """The compressed model is not what was planned; nothing is written."""
