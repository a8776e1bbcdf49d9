"""Small valid models, plans and arrays that the mutations start from."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from alds_onnx.api import compress
from alds_onnx.plans import plan_to_json
from tests.graph.builders import normal, parse

DATA = "weights.bin"


def _linear() -> ModelProto:
    text = """g (float[N, 16] x) => (float[N, 10] y) {
        a = MatMul (x, W)
        b = Relu (a)
        y = Gemm <alpha = 0.5, transB = 1> (b, V, c)
    }"""
    model = parse(text, {"W": normal(16, 24), "V": normal(10, 24), "c": normal(10)})
    model.graph.node[0].name = "first"
    model.graph.quantization_annotation.add(tensor_name="W")
    model.metadata_props.add(key="labels", value="a\nb")
    return model


def _convolutions() -> ModelProto:
    text = """g (float[1, 8, 9, 9] x) => (float[1, 12, 5, 5] y) {
        a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x, W, c)
        b = Conv <group = 2> (a, G)
        d = Relu (b)
        y = Conv <kernel_shape = [1, 1]> (d, V)
    }"""
    weights = {"W": normal(12, 8, 3, 3), "c": normal(12), "G": normal(12, 6, 1, 1)}
    return parse(text, weights | {"V": normal(12, 12, 1, 1)})


def _branches() -> ModelProto:
    text = """g (bool p, float[3, 16] x) => (float[3, 16] y) {
        y = If (p) <
            then_branch = t () => (float[3, 16] u) {
                u = If (p) <
                    then_branch = tt () => (float[3, 16] v) { v = MatMul (x, W) },
                    else_branch = te () => (float[3, 16] v) { v = Neg (x) }
                >
            },
            else_branch = e () => (float[3, 16] u) { u = MatMul (x, W) }
        >
    }"""
    return parse(text, {"W": normal(16, 16)})


def _chains() -> ModelProto:
    """Weights behind nodes; Constant nodes; a function."""
    text = """g (float[2, 5, 16] x) => (float[2, 5, 24] y) {
        s = Constant <value = int64[2] {16, 24}> ()
        r = Reshape (W, s)
        a = MatMul (x, r)
        t = Transpose <perm = [1, 0]> (V)
        b = MatMul (a, t)
        y = own.twice (b)
    }
    <opset_import: ["" : 17], domain: "own">
    twice (i) => (o) { o = Add (i, i) }"""
    return parse(text, {"W": normal(24, 16), "V": normal(24, 24)}, imports=', "own" : 1')


def _half() -> ModelProto:
    text = """g (float16[4, 16] x) => (float16[4, 16] y) {
        a = MatMul (x, W)
        y = MatMul (a, W)
    }"""
    return parse(text, {"W": normal(16, 16, dtype="float16")})


def _external() -> ModelProto:
    model = parse("g (float[3, 16] x) => (float[3, 24] y) { y = MatMul (x, W) }")
    tensor = model.graph.initializer.add(name="W", data_type=TensorProto.FLOAT, dims=(16, 24))
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", DATA), ("offset", "64"), ("length", str(16 * 24 * 4))):
        tensor.external_data.add(key=key, value=value)
    return model


def _loop() -> ModelProto:
    text = """g (int64 n, bool c, float[3, 16] x) => (float[3, 16] y) {
        y = Loop (n, c, x) <
            body = b (int64 i, bool k, float[3, 16] u) => (bool m, float[3, 16] v) {
                m = Identity (k)
                v = MatMul (u, W)
            }
        >
    }"""
    model = parse(text, {"W": normal(16, 16)})
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(normal(3), "S"),
        numpy_helper.from_array(np.array([1, 5, 7]), "S/indices"),
        [16],
    )
    model.graph.sparse_initializer.append(sparse)
    return model


def models() -> list[ModelProto]:
    """One of each kind."""
    made = (_linear, _convolutions, _branches, _chains, _half, _external, _loop)
    return [make() for make in made]


def write_data(folder: Path) -> None:
    """Write the file that the model with external data refers to."""
    (folder / DATA).write_bytes(bytes(64) + normal(16, 24).tobytes())


def plan() -> dict[str, Any]:
    """A plan of the first model."""
    return plan_to_json(compress(models()[0], cr=0.3, dry_run=True, threads=1).plan)


def plan_bytes() -> bytes:
    return json.dumps(plan()).encode()


def arrays() -> list[bytes]:
    """Files of calibration data."""
    files = []
    x, labels = normal(40, 16), np.arange(40)
    for save in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        save(buffer, x=x, labels=labels)
        files.append(buffer.getvalue())
    return [*files, npy(x)]


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """Bytes of an .npy file; pickled where it holds objects."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npy_claim(descr: str, shape: str, data: bytes = b"", *, fortran: bool = False) -> bytes:
    """An .npy file with the given words in its header, whatever follows."""
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def npz(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip archive with the given members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def serialized(model: ModelProto) -> bytes:
    return bytes(model.SerializeToString(deterministic=True))


def check_all() -> None:
    """Raise if a base is not what ONNX allows."""
    for model in models():
        if not any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer):
            onnx.checker.check_model(model)
