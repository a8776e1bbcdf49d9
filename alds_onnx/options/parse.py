"""Text from the command line to values; the messages of the errors are for the user."""

from __future__ import annotations

from decimal import Decimal

from alds_onnx.cuts import Scheme

#: Most points of a sweep.
MOST_RATIOS = 100


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Parse `name:1,3,224,224`; the name may hold colons itself."""
    name, colon, dims = text.rpartition(":")
    sizes = dims.split(",") if dims else []
    if not colon or not all(size.strip().isdigit() for size in sizes):
        raise ValueError(f"'{text}' is not like input:1,3,224,224")
    return name, tuple(int(size) for size in sizes)


def parse_schemes(text: str) -> tuple[Scheme, ...]:
    """Parse `encode,decode`, or `all`."""
    if text == "all":
        return tuple(Scheme)
    known = {scheme.value: scheme for scheme in Scheme}
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in known:
            raise ValueError(f"'{name}' is not one of {', '.join(known)}, all")
    return tuple(known[name] for name in names)


def parse_ratios(text: str) -> tuple[float, ...]:
    """Parse `0.1:0.9:0.1`, the last one included, or `0.2,0.5`; counts in decimal numbers."""
    try:
        if ":" not in text:
            return tuple(float(Decimal(part)) for part in text.split(","))
        first, last, step = (Decimal(part) for part in text.split(":"))
        count = int((last - first) / step) + 1
    except (ArithmeticError, ValueError) as e:
        raise ValueError(f"'{text}' is not like 0.1:0.9:0.1 or 0.2,0.5") from e
    if step <= 0 or not 0 < count <= MOST_RATIOS:
        raise ValueError(f"'{text}' makes no steps, or more than {MOST_RATIOS}")
    return tuple(float(first + i * step) for i in range(count))
