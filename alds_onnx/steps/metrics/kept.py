"""The cached results: error curves, sums over the data, and sensitivities, as plain arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from alds_onnx.cache import Arrays, Cache
from alds_onnx.calibrate.reader import Feed
from alds_onnx.calibrate.sensitivity import Sensitivity
from alds_onnx.calibrate.statistics import Sums
from alds_onnx.cuts import ErrorCurve, ErrorNorm, LayerShape, Scheme, Spectra, read_only
from alds_onnx.graph.files.external import external_tensors
from alds_onnx.graph.files.load import LoadedModel
from alds_onnx.graph.tensors import read_array

_SCHEMES = tuple(Scheme)
_SUMS = ("xx", "yx", "x", "y")


def remembered_spectra(
    cache: Cache, shape: LayerShape, compute: Callable[[], Spectra], kind: str, *parts: object
) -> Spectra:
    """Give the error curves of a weight of this shape; they also depend on `parts`."""
    if cache.folder is None:
        return compute()
    found = cache.arrays(lambda: _from_spectra(compute()), kind, shape, *parts)
    curves = (
        ErrorCurve(
            num_slices=int(k),
            relative_error=read_only(found[f"error{i}"]),
            scheme=_SCHEMES[int(scheme)],
        )
        for i, (k, scheme) in enumerate(found["curves"])
    )
    return Spectra(
        shape=shape,
        norm=float(found["norm"]),
        curves=tuple(curves),
        schemes=tuple(_SCHEMES[int(scheme)] for scheme in found["schemes"]),
        error_norm=ErrorNorm(str(found["error_norm"])),
    )


def _from_spectra(spectra: Spectra) -> Arrays:
    errors = {f"error{i}": curve.relative_error for i, curve in enumerate(spectra.curves)}
    curves = [(curve.num_slices, _SCHEMES.index(curve.scheme)) for curve in spectra.curves]
    return {
        "norm": np.array(spectra.norm),
        "curves": np.array(curves, np.int64),
        "schemes": np.array([_SCHEMES.index(scheme) for scheme in spectra.schemes], np.int64),
        "error_norm": np.array(spectra.error_norm.value),
        **errors,
    }


def remembered_sums(
    cache: Cache,
    compute: Callable[[], tuple[Mapping[str, Sums], Mapping[str, Sums]]],
    *parts: object,
) -> tuple[Mapping[str, Sums], Mapping[str, Sums]]:
    """Give the sums over each half of the data, by layer name."""
    if cache.folder is None:
        return compute()

    def arrays() -> Arrays:
        halves = compute()
        sums = [(name, half, one) for half in (0, 1) for name, one in halves[half].items()]
        packed = {
            f"{field}{i}": np.asarray(getattr(one, field))
            for i, (_, _, one) in enumerate(sums)
            for field in _SUMS
        }
        return {
            "names": np.array([name for name, _, _ in sums], np.str_),
            "scalars": np.array([(half, one.count, one.yy) for _, half, one in sums]),
            **packed,
        }

    found = cache.arrays(arrays, "sums", *parts)
    halves: tuple[dict[str, Sums], dict[str, Sums]] = ({}, {})
    for i, name in enumerate(found["names"]):
        half, count, yy = found["scalars"][i]
        halves[int(half)][str(name)] = Sums(
            count=int(count),
            yy=float(yy),
            xx=found[f"xx{i}"],
            yx=found[f"yx{i}"],
            x=found[f"x{i}"],
            y=found[f"y{i}"],
        )
    return halves


def remembered_sensitivities(
    cache: Cache, compute: Callable[[], Mapping[str, Sensitivity]], *parts: object
) -> Mapping[str, Sensitivity]:
    """Sensitivities by the names of the weights."""
    if cache.folder is None:
        return compute()

    def arrays() -> Arrays:
        measured = compute()
        points = {
            f"points{i}": np.array([one.local, one.output])
            for i, one in enumerate(measured.values())
        }
        return {"names": np.array(list(measured), np.str_), **points}

    found = cache.arrays(arrays, "sensitivities", *parts)
    return {
        str(name): Sensitivity(
            local=tuple(map(float, found[f"points{i}"][0])),
            output=tuple(map(float, found[f"points{i}"][1])),
        )
        for i, name in enumerate(found["names"])
    }


def identity_of_model(loaded: LoadedModel) -> str:
    """Hash a model and all data outside of its file."""
    digest = hashlib.sha256(loaded.sha256.encode())
    for tensor in external_tensors(loaded.model):
        digest.update(np.ascontiguousarray(read_array(tensor, loaded.folder)).tobytes())
    return digest.hexdigest()


def identity_of_data(feeds: Sequence[Feed]) -> str:
    """Hash calibration data and its division into runs."""
    digest = hashlib.sha256()
    for feed in feeds:
        for name, array in sorted(feed.items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(b"end of a run")
    return digest.hexdigest()
