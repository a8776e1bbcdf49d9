"""What the pipeline asks of a metric. It does not know which one it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, TypeAlias

from alds_onnx.cuts import FloatArray, Spectra
from alds_onnx.evidence import Damage
from alds_onnx.search.choose import Choice
from alds_onnx.steps.rows import Decomposition
from alds_onnx.steps.survey import Advance

#: Chooses again, with the errors of single layers scaled by factors.
Reconsider: TypeAlias = Callable[[Mapping[str, float]], Choice]


class Metric(Protocol):
    """Four questions about the layers of a model.

    Attributes
    ----------
    on_data
        Whether errors are measured on calibration data.
    spectra
        Error curves of every weight that may be cut, by its name, in graph order.
    tolerance
        How many times as large the objective may be for cuts that are fast on the target.
    """

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
        """The errors that count in the search, from relative errors of a layer."""

    def relative(self, damage: float) -> float:
        """A relative error, from an error or a sum of errors that counts in the search."""

    def probes_of(self, name: str) -> tuple[Damage, ...]:
        """What was measured to know the damage of a weight; ascending."""

    def fit(self, choice: Choice, reconsider: Reconsider, advance: Advance) -> list[Decomposition]:
        """The factors for the cuts of a choice, and their errors.

        A metric that learns more about the layers while it fits them may choose again.
        """
