"""The inputs on which models are compared and timed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto

from alds_onnx.evaluate.random_inputs import Hints, Shapes, find_recipe
from alds_onnx.evaluate.sessions import Execution, Feeds, Session, flatten
from alds_onnx.graph.scopes import Key, ModelIndex, unused

_RANDOM_SAMPLES = 4
# A model whose run takes longer than this is compared on one random sample.
_SLOW_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kind:
    """Inputs of one kind, and the number, from 0, of a typical sample among all that were given."""

    example: int
    feeds: tuple[Feeds, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """Inputs, one entry for each run; `random` says whether they are random numbers.

    `held_out` says that nothing is fitted to them or chosen by them. Those in `left_out` are of
    kinds of inputs that some fits leave out. `num_fitted` are the numbers of samples in the first
    half of what models are fitted to, and in both.
    """

    feeds: tuple[Feeds, ...]
    random: bool
    held_out: bool = False
    left_out: tuple[Kind, ...] = ()
    num_fitted: tuple[int, int] = (0, 0)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs of the first run."""
        return {name: array.shape for name, array in self.feeds[0].items()}


def random_samples(
    model: ModelProto,
    folder: Path,
    execution: Execution,
    *,
    shapes: Shapes,
    hints: Hints,
    seed: int,
) -> Samples:
    """Make random inputs of shapes with which the model runs; see `find_recipe`."""
    session = Session(model, folder, execution)
    recipe = find_recipe(session, shapes, hints, seed)
    generator = np.random.default_rng(seed)
    first = recipe.draw(generator)
    start = time.perf_counter()
    session.run(first)
    count = 1 if time.perf_counter() - start > _SLOW_SECONDS else _RANDOM_SAMPLES
    others = [recipe.draw(generator) for _ in range(count - 1)]
    return Samples(feeds=(first, *others), random=True)


def measured_shapes(
    model: ModelProto, folder: Path, execution: Execution, feeds: Feeds, wanted: set[str]
) -> dict[Key, tuple[int, ...]]:
    """Measure the shapes of tensors of the main graph in one run of the model.

    Each wanted tensor gets a Shape node whose output is a new graph output. So the tensors
    themselves need not be kept.
    """
    probe = ModelProto()
    probe.CopyFrom(model)
    names = ModelIndex(probe).names()
    probes: dict[str, str] = {}
    for name in sorted(wanted):
        probes[name] = output = unused(f"{name}/measured_shape", names)
        probe.graph.node.append(NodeProto(op_type="Shape", input=[name], output=[output]))
        value = ValueInfoProto(name=output)
        value.type.tensor_type.elem_type = TensorProto.INT64
        probe.graph.output.append(value)
    session = Session(probe, folder, execution)
    outputs = session.run(feeds, list(probes.values()))
    return {
        Key(0, name): tuple(int(n) for n in flatten(shape)[0])
        for name, shape in zip(probes, outputs, strict=True)
    }
