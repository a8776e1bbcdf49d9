"""Compress trained ONNX models by low-rank decomposition, and say what it cost.

The names are imported when they are first used: the command can then answer `--help`, and Ctrl-C,
before onnxruntime and SciPy are loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alds_onnx.api import MergeResult, Result, compress, merge, sweep
    from alds_onnx.cuts import Scheme
    from alds_onnx.errors import (
        AldsError,
        BudgetError,
        DataError,
        InputError,
        LimitError,
        ModelError,
        PlanError,
        UsageError,
        VerificationError,
    )
    from alds_onnx.plans import plan_to_json, read_plan
    from alds_onnx.runtimes import Provider, Runtime
    from alds_onnx.settings import Measuring, Step
    from alds_onnx.steps.merge import MergeReport
    from alds_onnx.sweeps import Sweep, make_sweep
    from alds_onnx.values import Plan, Report, SearchMethod

__all__ = [
    "AldsError",
    "BudgetError",
    "DataError",
    "InputError",
    "LimitError",
    "Measuring",
    "MergeReport",
    "MergeResult",
    "ModelError",
    "Plan",
    "PlanError",
    "Provider",
    "Report",
    "Result",
    "Runtime",
    "Scheme",
    "SearchMethod",
    "Step",
    "Sweep",
    "UsageError",
    "VerificationError",
    "compress",
    "make_sweep",
    "merge",
    "plan_to_json",
    "read_plan",
    "sweep",
]

_HOMES = {
    "alds_onnx.api": ("MergeResult", "Result", "compress", "merge", "sweep"),
    "alds_onnx.cuts": ("Scheme",),
    "alds_onnx.errors": tuple(name for name in __all__ if name.endswith("Error")),
    "alds_onnx.plans": ("plan_to_json", "read_plan"),
    "alds_onnx.runtimes": ("Provider", "Runtime"),
    "alds_onnx.settings": ("Measuring", "Step"),
    "alds_onnx.steps.merge": ("MergeReport",),
    "alds_onnx.sweeps": ("Sweep", "make_sweep"),
    "alds_onnx.values": ("Plan", "Report", "SearchMethod"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("alds-onnx")
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'alds_onnx' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
