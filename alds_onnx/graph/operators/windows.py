"""The patches of an input that a kernel sees, as views (im2col), and the zeros around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from onnx import NodeProto

from alds_onnx.decompose.stages import Array
from alds_onnx.graph.scopes import integers, string

#: Zeros before and after each spatial axis.
Pads: TypeAlias = Sequence[tuple[int, int]]


def patches(padded: Array, kernel: Sequence[int], dilations: Sequence[int]) -> Array:
    """View all patches of an input (n, c, ..) that is padded already: (n, oh, ow, c, kh, kw).

    `kernel` and `dilations` have one number for each spatial axis.
    """
    axes = len(kernel)
    views = np.lib.stride_tricks.sliding_window_view(
        padded, extents(kernel, dilations), axis=tuple(range(2, 2 + axes))
    )
    taps = tuple(slice(None, None, d) for d in dilations)
    views = views[(*(slice(None),) * (2 + axes), *taps)]  # (n, c, oh, ow, kh, kw)
    return np.moveaxis(views, 1, -axes - 1)


def extents(kernel: Sequence[int], dilations: Sequence[int]) -> tuple[int, ...]:
    """Sizes of the dilated kernel."""
    return tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True))


def per_axis(node: NodeProto, name: str, axes: int, default: int) -> tuple[int, ...]:
    """An attribute with a number for each spatial axis."""
    return integers(node, name) or (default,) * axes


def explicit_pads(node: NodeProto, axes: int) -> Pads | None:
    """The pads that a node tells as numbers; None where auto_pad asks for the same size."""
    mode = string(node, "auto_pad") or "NOTSET"
    if mode not in ("NOTSET", "VALID"):
        return None
    pads = (integers(node, "pads") if mode == "NOTSET" else None) or (0,) * (2 * axes)
    return tuple(zip(pads[:axes], pads[axes:], strict=True))


def shared_pads(node: NodeProto, totals: Sequence[int]) -> Pads:
    """Distribute zeros to both sides, the odd one after (SAME_UPPER) or before (SAME_LOWER)."""
    is_upper = string(node, "auto_pad") == "SAME_UPPER"
    halves = [(total // 2, total - total // 2) for total in totals]
    return [(small, large) if is_upper else (large, small) for small, large in halves]
