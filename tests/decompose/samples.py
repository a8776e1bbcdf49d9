"""Explicit samples, and their moments."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from alds_onnx.cuts import FloatArray, LayerShape
from alds_onnx.decompose.regression import Moments


@dataclass(frozen=True)
class Data:
    """Samples x (t, n) and y (t, f), and the weight W (f, n) to shrink towards."""

    shape: LayerShape
    W: FloatArray
    x: FloatArray
    y: FloatArray

    def moments(self, *, centred: bool = False) -> Moments:
        x, y = self.x, self.y
        means = (x.mean(axis=0), y.mean(axis=0))
        if not centred:
            means = (np.zeros(x.shape[1]), np.zeros(y.shape[1]))
        x, y = x - means[0], y - means[1]
        return Moments(
            inputs=x.T @ x / len(x),
            cross=y.T @ x / len(x),
            power=float((y**2).sum() / len(x)),
            input_mean=means[0],
            output_mean=means[1],
        )

    def with_ridge(self, ridge: float) -> Data:
        """A ridge is n more samples, along the axes, whose outputs are those of W."""
        n = self.x.shape[1]
        size = np.sqrt(ridge * (self.x**2).sum() / n)  # over t samples
        return Data(
            shape=self.shape,
            W=self.W,
            x=np.vstack([self.x, size * np.eye(n)]),
            y=np.vstack([self.y, size * self.W.T]),
        )

    def error(self, A: FloatArray) -> float:
        """Squared error of y ≈ A x, relative to y."""
        return float(((self.y - self.x @ A.T) ** 2).sum() / (self.y**2).sum())


def samples(
    *, f: int = 6, c: int = 4, kernel: tuple[int, ...] = (3,), noise: float = 0.5, seed: int = 0
) -> Data:
    """Dependent inputs of very different sizes; outputs are those of W and something else."""
    generator = np.random.default_rng(seed)
    shape = LayerShape(out_features=f, in_channels=c, kernel=kernel)
    n = shape.num_columns
    mix = generator.standard_normal((n, n)) * np.logspace(0, -2, n)
    x = generator.standard_normal((20 * n, n)) @ mix.T + generator.standard_normal(n)
    W = generator.standard_normal((f, n))
    y = x @ W.T
    y = y + noise * np.sqrt((y**2).mean()) * np.tanh(x[:, :1] + generator.standard_normal(f))
    return Data(shape=shape, W=W, x=x, y=y)


def linear(data: Data) -> Data:
    """The same inputs with the outputs of W."""
    return Data(shape=data.shape, W=data.W, x=data.x, y=data.x @ data.W.T)
