"""Pictures of many things, most of them photographs, for a network that tells what they show.

They come from two Debian packages: the stamps of Tux Paint, which are objects on a transparent
background, and the photographs in the games of GCompris. A stamp is put on a part of a photograph
that scikit-image carries, a photograph is cut at random; either may be mirrored.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from wheels import package, wheel

SIZE = 224
_STAMPS = "tuxpaint-stamps-default=2022.06.04-1"
_GAMES = "gcompris-qt-data=3.1-2"
_SCIKIT_IMAGE = "scikit-image==0.25.2"
_BACKGROUNDS = (
    "astronaut.png",
    "brick.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "rocket.jpg",
)
# Drawings, and stamps that are another one mirrored.
_NOT_TAKEN = ("cartoon", "symbols", "_mirror")
_SMALLEST = 32  # pixels of the shorter side: less shows too little
# What the photographs of the games show, by how their path begins; others are not taken.
_SHOWN = {
    "categorization/resource/images/fishes": "animals/fish",
    "categorization/resource/images/monuments": "monuments",
    "categorization/resource/images/others": "household",
    "categorization/resource/images/renewable": "energy",
    "categorization/resource/images/tools": "household",
    "erase/resource": "animals/wild",
    "explore_farm_animals/resource/animals": "animals/farm",
    "explore_monuments/resource": "monuments",
    "explore_world_animals/resource/animals": "animals/wild",
}
_FOLDER, _TIMED = 2, 2  # a flag of a node, and the version from which nodes have a time

Indices = npt.NDArray[np.int64]
Images = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture file and the kind of thing that it shows."""

    kind: str
    data: bytes


@cache
def pictures() -> tuple[Picture, ...]:
    """All pictures that are large enough, always in the same order."""
    found = [*_stamps(), *_photographs()]
    return tuple(picture for picture in found if _shorter_side(picture.data) >= _SMALLEST)


def rendered(indices: Indices, seed: int) -> Images:
    """As EfficientNet-Lite takes them: shape (pictures, 3, 224, 224), in -1 to 1."""
    images = [_composed(pictures()[i].data, np.random.default_rng((seed, i))) for i in indices]
    pixels = np.stack([np.asarray(image, np.float32) for image in images])
    return np.ascontiguousarray((pixels.transpose(0, 3, 1, 2) - 127) / 128)


def _stamps() -> Iterator[Picture]:
    root = package(_STAMPS) / "usr/share/tuxpaint/stamps"
    for path in sorted(root.rglob("*.png")):
        name = path.relative_to(root)
        if not any(word in str(name) for word in _NOT_TAKEN):
            # A third of all stamps are animals: too many to be one kind.
            parts = name.parts[: 2 if name.parts[0] == "animals" else 1]
            yield Picture(kind="/".join(parts), data=path.read_bytes())


def _photographs() -> Iterator[Picture]:
    folder = package(_GAMES) / "usr/share/gcompris-qt/rcc"
    for game in sorted({start.split("/")[0] for start in _SHOWN}):
        files = _resources((folder / f"{game}.rcc").read_bytes())
        for path, data in sorted(files, key=lambda file: str(file[0])):
            kind = next((k for start, k in _SHOWN.items() if f"/{start}/" in f"/{path}"), None)
            if kind and path.suffix in (".webp", ".jpg"):
                yield Picture(kind=kind, data=data)


def _resources(data: bytes) -> Iterator[tuple[PurePosixPath, bytes]]:
    """The files in a resource file of Qt; pictures are not compressed there once more."""
    version, tree, content, names = struct.unpack(">4xIIII", data[:20])
    step = 22 if version >= _TIMED else 14

    def walk(node: int, folder: PurePosixPath) -> Iterator[tuple[PurePosixPath, bytes]]:
        at = tree + node * step
        name, flags, first, second = struct.unpack(">IHII", data[at : at + 14])
        (length,) = struct.unpack(">H", data[names + name : names + name + 2])
        start = names + name + 6
        path = folder / data[start : start + 2 * length].decode("utf-16-be") if node else folder
        if flags & _FOLDER:
            for child in range(second, second + first):
                yield from walk(child, path)
            return
        start = content + second
        (length,) = struct.unpack(">I", data[start : start + 4])
        yield path, data[start + 4 : start + 4 + length]

    return walk(0, PurePosixPath())


def _composed(data: bytes, generator: np.random.Generator) -> Image.Image:
    """A picture at a random place and in a random size, mirrored or not."""
    image = _opened(data)
    if image.getextrema()[3][0] == 255:
        whole = _cut(image.convert("RGB"), generator, 0.7, 1.0)
    else:
        backgrounds = _backgrounds()
        behind = backgrounds[int(generator.integers(len(backgrounds)))]
        # So little of a photograph that the stamp is what the picture shows.
        whole = _cut(behind, generator, 0.1, 0.4)
        scale = SIZE * generator.uniform(0.65, 1.0) / max(image.size)
        stamp = image.resize([max(1, round(n * scale)) for n in image.size])
        free = [SIZE - n for n in stamp.size]
        place = (int(generator.integers(free[0] + 1)), int(generator.integers(free[1] + 1)))
        whole.paste(stamp, place, stamp)
    mirrored = generator.random() < 0.5
    return whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else whole


def _cut(
    image: Image.Image, generator: np.random.Generator, least: float, most: float
) -> Image.Image:
    """A square anywhere, whose side is a fraction of the shorter side between the two."""
    side = int(min(image.size) * generator.uniform(least, most))
    left, top = (int(generator.integers(n - side + 1)) for n in image.size)
    return image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE))


@cache
def _backgrounds() -> tuple[Image.Image, ...]:
    with wheel(_SCIKIT_IMAGE) as archive:
        files = [archive.read(f"skimage/data/{name}") for name in _BACKGROUNDS]
    return tuple(_opened(data).convert("RGB") for data in files)


def _shorter_side(data: bytes) -> int:
    with Image.open(io.BytesIO(data)) as image:
        return min(image.size)


def _opened(data: bytes) -> Any:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGBA")
