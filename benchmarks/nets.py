"""Networks with the layers of known ones and random weights, for what depends on sizes only.

The weights have singular values that decay as rank^-0.5: errors on them say nothing about trained
networks. Times do not depend on the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = npt.NDArray[Any]


class Net:
    """A chain of layers with random weights; `tensor` is what the next one reads."""

    def __init__(self, *shape: int) -> None:
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self.shape = tuple(shape)
        self.tensor, self.channels, self.size = "x", shape[0], shape[-1]
        self._generator = np.random.default_rng(0)
        self._names: Iterator[str] = (f"t{i}" for i in range(1 << 30))

    def add(self, op: str, *others: str, **attributes: Any) -> str:
        output = next(self._names)
        node = helper.make_node(op, [self.tensor, *others], [output], name=output, **attributes)
        self.nodes.append(node)
        self.tensor = output
        return output

    def relu(self, _: str) -> str:
        return self.add("Relu")

    def conv(self, features: int, kernel: int, stride: int = 1, group: int = 1) -> str:
        weight = self._weight(features, self.channels // group, kernel, kernel)
        pads, self.channels = [kernel // 2] * 4, features
        return self.add(
            "Conv", weight, self._zeros(features), pads=pads, strides=[stride] * 2, group=group
        )

    def gemm(self, features: int) -> str:
        weight = self._weight(features, self.channels)
        self.channels = features
        return self.add("Gemm", weight, self._zeros(features), transB=1)

    def bottleneck(self, width: int, *, stride: int, first: bool) -> None:
        """1x1, 3x3 and 1x1, added to the input or to a 1x1 of it."""
        start, channels = self.tensor, self.channels
        self.relu(self.conv(width, 1))
        self.relu(self.conv(width, 3, stride))
        end = self.conv(4 * width, 1)
        if first:
            self.tensor, self.channels = start, channels
            start = self.conv(4 * width, 1, stride)
        self.tensor = end
        self.relu(self.add("Add", start))

    def inverted(self, features: int, *, stride: int, expansion: int) -> None:
        """1x1 to more channels, depthwise 3x3, 1x1 to `features`; added to the input if it fits."""
        start, channels = self.tensor, self.channels
        if expansion > 1:
            self.relu6(self.conv(expansion * channels, 1))
        self.relu6(self.conv(self.channels, 3, stride, group=self.channels))
        self.conv(features, 1)
        if stride == 1 and features == channels:
            self.add("Add", start)

    def relu6(self, _: str) -> str:
        return self.add("Clip", self._initializer(0.0), self._initializer(6.0))

    def dense(self, features: int) -> str:
        """Y = X W + b on the last axis."""
        weight = self._weight(features, self.channels, transposed=True)
        self.channels = features
        self.add("MatMul", weight)
        return self.add("Add", self._zeros(features))

    def encoder_block(self, heads: int, hidden: int) -> None:
        """Self-attention and two layers with a Gelu between, each added to its input."""
        start, width = self.tensor, self.channels
        parts = []
        for perm in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3]):
            self.tensor = start
            self.dense(width)
            self.add("Reshape", self._integers(0, 0, heads, width // heads))
            parts.append(self.add("Transpose", perm=perm))
        query, key, value = parts
        self.tensor = query
        self.add("MatMul", key)
        self.add("Mul", self._initializer((width // heads) ** -0.5))
        self.add("Softmax", axis=-1)
        self.add("MatMul", value)
        self.add("Transpose", perm=[0, 2, 1, 3])
        self.add("Reshape", self._integers(0, 0, width))
        self.dense(width)
        self._normalized(start)
        start = self.tensor
        self.gelu(self.dense(hidden))
        self.dense(width)
        self._normalized(start)

    def gelu(self, x: str) -> str:
        self.add("Mul", self._initializer(0.5**0.5))
        self.add("Erf")
        self.add("Add", self._initializer(1.0))
        self.add("Mul", x)
        return self.add("Mul", self._initializer(0.5))

    def _normalized(self, other: str) -> str:
        self.add("Add", other)
        ones = self._initializer(np.ones(self.channels))
        return self.add("LayerNormalization", ones, self._zeros(self.channels))

    def _integers(self, *values: int) -> str:
        name = next(self._names)
        self.weights.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def _weight(self, features: int, *rest: int, transposed: bool = False) -> str:
        """Random singular vectors, roughly orthogonal, with singular values that decay."""
        columns = int(np.prod(rest))
        left = self._generator.standard_normal((features, most := min(features, columns, 512)))
        right = self._generator.standard_normal((most, columns)) / np.sqrt(columns)
        decay = np.arange(1, most + 1) ** -0.5
        noise = self._generator.standard_normal((features, columns)) * 0.02 / np.sqrt(columns)
        array = left * decay @ right / np.sqrt(np.log(most + 1)) + noise
        return self._initializer(array.T if transposed else array.reshape(features, *rest))

    def _zeros(self, features: int) -> str:
        return self._initializer(np.zeros(features))

    def _initializer(self, array: Array | float) -> str:
        name = next(self._names)
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
        return name

    def save(self, path: Path) -> Path:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *self.shape])
        rows = self.shape[:1] if len(self.shape) == 2 else ()  # the tokens of a sequence stay
        dims = ["n", *rows, self.channels]
        y = helper.make_tensor_value_info(self.tensor, TensorProto.FLOAT, dims)
        graph = helper.make_graph(self.nodes, "net", [x], [y], self.weights)
        opsets = [helper.make_opsetid("", 17)]
        model: ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        path.write_bytes(model.SerializeToString())
        return path


def vgg16(path: Path) -> Path:
    net = Net(3, 224, 224)
    for stage, (channels, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        for _ in range(depth):
            net.relu(net.conv(channels, 3))
        net.add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
        net.size = 112 >> stage
    net.add("Flatten")
    net.channels *= net.size**2
    for features in (4096, 4096):
        net.relu(net.gemm(features))
    net.gemm(1000)
    return net.save(path)


def resnet50(path: Path) -> Path:
    net = Net(3, 224, 224)
    net.relu(net.conv(64, 7, stride=2))
    net.add("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage, depth in enumerate([3, 4, 6, 3]):
        for block in range(depth):
            net.bottleneck(64 << stage, stride=2 if stage and not block else 1, first=not block)
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.gemm(1000)
    return net.save(path)


def mobilenet_v2(path: Path) -> Path:
    net = Net(3, 224, 224)
    net.relu6(net.conv(32, 3, stride=2))
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2)]
    stages += [(6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expansion, features, depth, stride in stages:
        for block in range(depth):
            net.inverted(features, stride=1 if block else stride, expansion=expansion)
    net.relu6(net.conv(1280, 1))
    net.add("GlobalAveragePool")
    net.add("Flatten")
    net.gemm(1000)
    return net.save(path)


def bert_base(path: Path) -> Path:
    """The encoder without its embeddings."""
    net = Net(128, 768)
    net.channels = 768
    for _ in range(12):
        net.encoder_block(heads=12, hidden=3072)
    return net.save(path)
