"""The runtimes that may run a model, and what each is fast at: one preset for each, as data."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any

import numpy as np


class Runtime(str, Enum):
    """What will run the compressed model."""

    ORT = "ort"
    ORT_AVX512 = "ort-avx512"
    ORT_AVX2 = "ort-avx2"
    ORT_ARM = "ort-arm"
    OPENVINO = "openvino"
    MNN = "mnn"
    NCNN = "ncnn"
    TFLITE = "tflite"
    COREML = "coreml"
    TENSORRT = "tensorrt"
    NONE = "none"


class Provider(str, Enum):
    """Execution providers of onnxruntime that can be asked for."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    COREML = "coreml"
    DIRECTML = "directml"
    OPENVINO = "openvino"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Which (k, j) a runtime is fast at; the rule made of it is `search.alignment.Alignment`.

    Attributes
    ----------
    block
        Of a Conv, the rank j and the channels of a slice c/k are multiples of this; 1: no matter.
        With one slice, ranks below the block are as good.
    most_slices
        Largest k of a Conv; None: no limit.
    most_product_slices
        Largest k of a Gemm or MatMul; None: no limit. Their ranks are free.
    depthwise
        Whether a Conv of two dimensions is also fast as a depthwise one: k = c, j = 1.
    why, source
        A sentence, and what it rests on.
    """

    runtime: Runtime
    block: int
    most_slices: int | None
    most_product_slices: int | None
    depthwise: bool = False
    why: str
    source: str


_NCHWC = "onnxruntime: nchwc_transformer.cc (TransformConv); benchmarks/latency.md"
_ELSEWHERE = "measured once on 3x3 convolutions 128 -> 128, x86 with AVX-512, k up to 8"
_UNMEASURED = "not measured by this project"


def _ort(runtime: Runtime, block: int) -> Preset:
    return Preset(
        runtime=runtime,
        block=block,
        most_slices=None,
        most_product_slices=1,
        depthwise=True,
        why=f"convolutions run in blocks of {block} channels, others on a slow path; slices of a "
        "product cost time and never save any",
        source=_NCHWC + "; benchmarks/matmul_slices.py",
    )


def _blocked(runtime: Runtime) -> Preset:
    return Preset(
        runtime=runtime,
        block=16,
        most_slices=8,
        most_product_slices=1,
        why="ranks in multiples of 16 took about as long as their multiply-accumulates say, others "
        "up to 2.5 times as long",
        source=_ELSEWHERE,
    )


def _one_slice(runtime: Runtime, why: str) -> Preset:
    return Preset(
        runtime=runtime,
        block=8,
        most_slices=1,
        most_product_slices=1,
        why=why,
        source=_UNMEASURED,
    )


_PRESETS = (
    _ort(Runtime.ORT_AVX512, 16),
    _ort(Runtime.ORT_AVX2, 8),
    _ort(Runtime.ORT_ARM, 16),
    _blocked(Runtime.OPENVINO),
    _blocked(Runtime.MNN),
    _blocked(Runtime.NCNN),
    _one_slice(Runtime.TFLITE, "grouped convolutions are not run everywhere, so there are none"),
    _one_slice(Runtime.COREML, "grouped convolutions leave the fast path, so there are none"),
    _one_slice(Runtime.TENSORRT, "tensor cores want channels in eights, and dense convolutions"),
    Preset(
        runtime=Runtime.NONE,
        block=1,
        most_slices=None,
        most_product_slices=None,
        why="all slices and ranks, as in the paper",
        source="Liebenwein et al. 2021",
    ),
)


def preset(runtime: Runtime) -> Preset:
    """Give the preset of a runtime; that of `ORT` is for the processor of this machine."""
    if runtime is Runtime.ORT:
        return _ort(runtime, _block_of_this_machine())
    return next(found for found in _PRESETS if found.runtime is runtime)


@cache
def _block_of_this_machine() -> int:
    """Channels in a block of onnxruntime: MlasNchwcGetBlockSize() (16 on AVX-512 and arm64)."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return 16
    extensions: Any = np.show_config(mode="dicts")["SIMD Extensions"]
    names = [*extensions.get("baseline", ()), *extensions.get("found", ())]
    # NumPy 2.4 has names for groups of them; X86_V4 is the one with AVX-512.
    return 16 if any(name == "X86_V4" or name.startswith("AVX512") for name in names) else 8
