"""The interface of a metric: the pipeline uses nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from alds_onnx.cuts import FloatArray, Spectra
from alds_onnx.evidence import Damage
from alds_onnx.search.frontier import Choice
from alds_onnx.steps.rows import Decomposition
from alds_onnx.steps.survey import Advance

#: Makes the choice again, with the errors of single layers scaled by factors.
Reconsider: TypeAlias = Callable[[Mapping[str, float]], Choice]


class Metric(Protocol):
    """Defines the errors of layers, and fits their factors."""

    @property
    def on_data(self) -> bool:
        """Whether errors are measured on calibration data."""

    @property
    def spectra(self) -> Mapping[str, Spectra]:
        """Error curves by the names of the weights."""

    @property
    def tolerance(self) -> float:
        """At least 1."""

    def damage(self, name: str, error: FloatArray) -> FloatArray:
        """Convert relative errors of a layer to the errors that the search counts."""

    def relative(self, damage: float) -> float:
        """Convert an error that the search counts, or a sum of them, to a relative error."""

    def probes_of(self, name: str) -> tuple[Damage, ...]:
        """Give the measurements on which the damage of a weight rests, in ascending order."""

    def fit(self, choice: Choice, reconsider: Reconsider, advance: Advance) -> list[Decomposition]:
        """Fit the factors for the cuts of a choice, and compute their errors.

        A metric that learns more about the layers during the fit may choose again.
        """
