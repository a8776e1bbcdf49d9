"""The pictures of the documentation, from runs on the embedded model.

Takes about a minute; needs matplotlib. Run it from the project's root, with the package installed:

    python docs/pictures.py

That of the sweep is of the run whose table the README shows; to make its numbers again, add
`--csv docs/images/sweep.csv` to the command there.
"""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import onnx

import alds_onnx
from alds_onnx.cuts import LayerShape, Scheme
from alds_onnx.decompose.spectra import spectra_of_schemes
from alds_onnx.values import LayerPlan

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "models" / "digits.onnx"
CALIBRATION = ROOT / "models" / "digits_calibration.npz"
IMAGES = Path(__file__).parent / "images"

# Okabe and Ito's colours, which the colour-blind can tell apart.
_BEFORE, _BLIND, _FITTED = "#bbbbbb", "#D55E00", "#0072B2"
_SLICES = {1: "#000000", 4: "#0072B2", 16: "#009E73", 64: "#D55E00"}


def layers() -> None:
    """Parameters of each layer before and after, with and without calibration data."""
    compress = partial(
        alds_onnx.compress, MODEL, cr=0.8, target=alds_onnx.Runtime.NONE, dry_run=True
    )
    blind, fitted = compress().plan.layers, compress(calibration=CALIBRATION).plan.layers
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    places = np.arange(len(blind))
    axes.barh(places, [row.parameters_before for row in blind], 0.9, color=_BEFORE, label="before")
    axes.barh(places - 0.2, _after(blind), 0.35, color=_BLIND, label="--cr 0.8")
    axes.barh(places + 0.2, _after(fitted), 0.35, color=_FITTED, label="and --calibration")
    axes.set_yticks(places, [row.name for row in blind], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("parameters")
    axes.legend()
    _save(figure, "layers.png")


def _after(rows: tuple[LayerPlan, ...]) -> list[int]:
    return [row.parameters_after for row in rows]


def slices() -> None:
    """The relative error of one layer against its parameters, for some numbers of slices."""
    name = "layer3.1.conv1.weight"
    (tensor,) = (t for t in onnx.load(MODEL).graph.initializer if t.name == name)
    weight = onnx.numpy_helper.to_array(tensor)
    shape = LayerShape(
        out_features=weight.shape[0], in_channels=weight.shape[1], kernel=weight.shape[2:]
    )
    matrix = weight.reshape(len(weight), -1).astype(np.float64)
    found = spectra_of_schemes(matrix, shape, {Scheme.ENCODE: tuple(_SLICES)})
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for num_slices, colour in _SLICES.items():
        error = found.curve(num_slices).relative_error[1:]
        parameters = np.arange(1, len(error) + 1) * shape.parameters_per_rank(num_slices)
        axes.plot(parameters, error, "o-", color=colour, label=f"k = {num_slices}", markersize=3)
    axes.axvline(shape.num_parameters, color=_BEFORE)
    axes.text(shape.num_parameters, 0.62, " whole", color="#666666")
    axes.set_xlim(0, 1.2 * shape.num_parameters)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"parameters of the factors ({name})")
    axes.set_ylabel("relative error")
    axes.legend()
    _save(figure, "slices.png")


def sweep() -> None:
    """What each ratio of a sweep loses: top-1, and the error of the outputs."""
    with (IMAGES / "sweep.csv").open(encoding="utf-8") as file:
        points = list(csv.DictReader(file))
    removed = [100 * float(point["removed"]) for point in points]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    left.axhline(100 * float(points[0]["score_before"]), color=_BEFORE, label="before")
    _sweep(left, points, removed, [100 * float(point["score_after"]) for point in points])
    left.set_ylabel("top-1 in %")
    left.legend(loc="lower left")
    _sweep(right, points, removed, [float(point["output_error"]) for point in points])
    right.set_ylabel("relative error of the outputs")
    right.set_ylim(bottom=0)
    _save(figure, "sweep.png")


def _sweep(
    axes: plt.Axes, points: list[dict[str, str]], removed: list[float], values: list[float]
) -> None:
    """One picture of a sweep, with the suggested ratio in a ring."""
    axes.plot(removed, values, "o-", color=_FITTED, markersize=4)
    for point, place, value in zip(points, removed, values, strict=True):
        if point["suggested"] == "1":
            label = f"suggested: --cr {point['cr']}"
            axes.plot(place, value, "o", markersize=12, fillstyle="none", color=_BLIND, label=label)
    axes.set_xlim(0, 100)
    axes.set_xlabel("parameters removed in %")


def _save(figure: plt.Figure, name: str) -> None:
    figure.savefig(IMAGES / name, dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    matplotlib.use("Agg")
    layers()
    slices()
    sweep()
