"""Compress, train, merge, compress further: the loop of the ALDS paper, on an ONNX file.

    python examples/finetune.py models/digits.onnx trained.onnx --cr 0.5 --then 0.7

compresses the embedded model, loads the compressed file into PyTorch, trains its factors to give
the outputs of the original on images without labels, and puts the trained numbers back into the
file. For each `--then`, the pairs are merged to dense layers, which are compressed further and
trained again.

Needs the package and PyTorch (`pip install torch`); takes about a minute on one core. To use it on
a model of yours: give its inputs with `--images`, and add to `_OPERATORS` what it is made of.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

import alds_onnx
from alds_onnx import Runtime

MODELS = Path(__file__).parent.parent / "models"

BATCH_SIZE = 32
LEARNING_RATE = 1e-3
MAX_SHIFT_PX = 2
# Convolutions with many groups are slow to train as well as to run.
TARGET = Runtime.ORT_AVX2
# Of two implementations of the same float32 network; a wrong conversion is off by about 1.
ROUNDING = 1e-3


class OnnxNet(nn.Module):
    """An ONNX model of the operators below as a module; its weights are the parameters."""

    def __init__(self, model: ModelProto) -> None:
        super().__init__()
        self.nodes = list(model.graph.node)
        (self.input,) = (value.name for value in model.graph.input)
        (self.output,) = (value.name for value in model.graph.output)
        self.constants: dict[str, Tensor] = {}
        self.names: list[str] = []
        self.weights = nn.ParameterList()  # the names have dots, which PyTorch does not take
        for tensor in model.graph.initializer:
            value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            if value.is_floating_point() and value.ndim:
                self.names.append(tensor.name)
                self.weights.append(nn.Parameter(value))
            else:
                self.constants[tensor.name] = value

    def forward(self, batch: Tensor) -> Tensor:
        """Run the nodes in order, which is topological in ONNX."""
        values = self.constants | dict(zip(self.names, self.weights, strict=True))
        values[self.input] = batch
        for node in self.nodes:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            inputs = [values[name] for name in node.input if name]
            values[node.output[0]] = _OPERATORS[node.op_type](attributes, *inputs)
        return values[self.output]

    def written_to(self, model: ModelProto) -> ModelProto:
        """Give a copy of the model with the numbers that the parameters have now."""
        result = ModelProto()
        result.CopyFrom(model)
        values = {name: p.detach() for name, p in zip(self.names, self.weights, strict=True)}
        for tensor in result.graph.initializer:
            if tensor.name in values:
                tensor.CopyFrom(numpy_helper.from_array(values[tensor.name].numpy(), tensor.name))
        return result


def _conv(
    attributes: Mapping[str, Any], x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise NotImplementedError("auto_pad: export the model with explicit pads")
    top, left, bottom, right = attributes.get("pads", (0, 0, 0, 0))
    return functional.conv2d(
        functional.pad(x, (left, right, top, bottom)),
        weight,
        bias,
        stride=attributes.get("strides", (1, 1)),
        dilation=attributes.get("dilations", (1, 1)),
        groups=attributes.get("group", 1),
    )


def _gemm(attributes: Mapping[str, Any], a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    product = attributes.get("alpha", 1.0) * a @ b
    return product if c is None else product + attributes.get("beta", 1.0) * c


_OPERATORS: Mapping[str, Callable[..., Tensor]] = {
    "Add": lambda _, a, b: a + b,
    "Constant": lambda attributes: torch.from_numpy(
        numpy_helper.to_array(attributes["value"]).copy()
    ),
    "Conv": _conv,
    "Div": lambda _, a, b: a / b,
    "Flatten": lambda attributes, x: x.flatten(attributes.get("axis", 1)),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda _, x: x.mean((2, 3), keepdim=True),
    "MatMul": lambda _, a, b: a @ b,
    "Relu": lambda _, x: x.relu(),
    "Reshape": lambda _, x, shape: x.reshape(
        [x.shape[i] if size == 0 else size for i, size in enumerate(shape.tolist())]
    ),
    "Transpose": lambda attributes, x: x.permute(*attributes["perm"]),
}


def train(student: OnnxNet, teacher: OnnxNet, images: Tensor, steps: int) -> None:
    """Make the outputs of a module those of another, on images moved by a few pixels."""
    optimizer = torch.optim.Adam(student.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(images), (BATCH_SIZE,), generator=generator)
        shift = torch.randint(-MAX_SHIFT_PX, MAX_SHIFT_PX + 1, (2,), generator=generator)
        batch = torch.roll(images[chosen], shift.tolist(), (2, 3))
        with torch.no_grad():
            wanted = teacher(batch)
        loss = functional.mse_loss(student(batch), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def trained(model: ModelProto, original: ModelProto, images: Tensor, steps: int) -> ModelProto:
    """Train the weights of a compressed model, and check the result in onnxruntime."""
    student = OnnxNet(model)
    train(student, OnnxNet(original), images, steps)
    result = student.written_to(model)
    with torch.no_grad():
        expected = student(images[:BATCH_SIZE]).numpy()
    difference = np.linalg.norm(outputs(result, images[:BATCH_SIZE].numpy()) - expected)
    if difference > ROUNDING * np.linalg.norm(expected):
        raise RuntimeError("PyTorch and onnxruntime disagree: is an operator wrong?")
    return result


def outputs(model: ModelProto, images: np.ndarray) -> np.ndarray:
    """The first output of a model in onnxruntime."""
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def main() -> None:
    """Read the command line, go through the loop, print the score after each stage."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, metavar="IN.onnx")
    parser.add_argument("target", type=Path, metavar="OUT.onnx")
    parser.add_argument("--cr", type=float, default=0.5, help="removed at first")
    parser.add_argument("--then", type=float, action="append", help="removed next (repeatable)")
    parser.add_argument("--images", type=Path, default=MODELS / "digits_calibration.npz")
    parser.add_argument("--test", type=Path, default=MODELS / "digits_test.npz")
    parser.add_argument("--steps", type=int, default=40, help="of training, at each ratio")
    arguments = parser.parse_args()

    original = onnx.load(arguments.source)
    with np.load(arguments.images) as file, np.load(arguments.test) as test:
        images = torch.from_numpy(file["image"])
        test_images, labels = test["image"], test["labels"]

    def tell(stage: str, model: ModelProto) -> None:
        right = (outputs(model, test_images).argmax(1) == labels).mean()
        print(f"{stage:<32} top-1 {right:.2%}", flush=True)

    tell("original", original)
    dense = original
    for ratio in (arguments.cr, *(arguments.then or ())):
        model = alds_onnx.compress(dense, cr=ratio, target=TARGET).model
        tell(f"{ratio:.0%} of the parameters removed", model)
        model = trained(model, original, images, arguments.steps)
        tell("  trained", model)
        dense = alds_onnx.merge(model).model
    onnx.save(model, arguments.target)
    print(f"written: {arguments.target}")


if __name__ == "__main__":
    main()
