"""The second moments of the inputs of every layer, from one pass over the original model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from alds_onnx.calibrate.rows import Rows, sample_rows
from alds_onnx.calibrate.runner import Runner
from alds_onnx.calibrate.sums import Sums, sums_of, usable
from alds_onnx.cuts import LayerShape
from alds_onnx.decompose.regression import is_wide
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.scopes import ModelIndex

# Rows for each column of a weight. The relative error of a second moment is about 1/sqrt(rows), so
# that the weakest directions are determined well enough for a ridge to suffice.
_ROWS_PER_COLUMN = 40
_FEWEST_ROWS, _MOST_ROWS = 4096, 32768


def rows_wanted(shape: LayerShape) -> int:
    """Give the number of rows x to draw for a layer from all batches."""
    columns = shape.out_features if is_wide(shape) else shape.num_columns
    return int(np.clip(_ROWS_PER_COLUMN * columns, _FEWEST_ROWS, _MOST_ROWS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampler:
    """Draws rows of a layer's input, at the same positions in every model.

    Attributes
    ----------
    index
        The original model.
    seed, num_batches
        Seed of the draws, and the number of batches that share the rows.
    """

    index: ModelIndex
    seed: int
    num_batches: int

    def activation(self, layer: Layer) -> str:
        """Give the name of the tensor that a layer reads."""
        return str(self.index.node(layer.site).input[1 - layer.weight_input])

    def rows(self, layer: Layer, activation: object, batch: int) -> Rows:
        """Draw rows x from one batch."""
        count = -(-rows_wanted(layer.shape) // self.num_batches)
        generator = np.random.default_rng([self.seed, layer.site.node, batch])
        node = self.index.node(layer.site)
        return sample_rows(layer, node, np.asarray(activation), count, generator)


def input_sums(
    runner: Runner,
    sampler: Sampler,
    layers: Sequence[Layer],
    weights: Mapping[str, Rows],
    advance: Callable[[int, int], None],
) -> dict[str, Sums]:
    """Compute the sums over the inputs of layers of the main graph, by layer name.

    Parameters
    ----------
    runner, sampler
        The data, and the rows to draw.
    layers
        Layers of the main graph.
    weights
        Transposed weights (n, f) of the wide layers, whose outputs replace their inputs.
    advance
        Called after each batch.

    Raises
    ------
    RunError
        If onnxruntime cannot run the model.
    """
    names = list(dict.fromkeys(sampler.activation(layer) for layer in layers))
    tensors = runner.tensors(sampler.index.model, names)

    def sums(batch: int) -> dict[str, Sums]:
        activations = dict(zip(names, tensors(batch), strict=True))
        found = {}
        for layer in layers:
            rows = sampler.rows(layer, activations[sampler.activation(layer)], batch)
            rows = rows[usable(rows)]
            if layer.name in weights:
                rows = rows @ weights[layer.name]
            found[layer.name] = sums_of(rows, rows[:, :0])
        return found

    total: dict[str, Sums] = {}
    batches = range(len(runner.batches))
    for done, part in enumerate(runner.map(sums, batches), start=1):
        total = {name: total[name] + s if name in total else s for name, s in part.items()}
        advance(done, len(batches))
    return total
