"""What factors compute in one run, against convolutions whose products are counted one by one."""

from __future__ import annotations

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alds_onnx.cuts import Cut, LayerShape, Scheme, Work
from alds_onnx.decompose.stages import stages

BATCH = 2


def counted(shape: LayerShape, cut: Cut, work: Work) -> int:
    """Go through the convolutions with the sizes that the tensors between them have."""
    assert work.inputs is not None
    sizes, total = list(work.inputs), 0
    for stage in stages(shape, cut):
        before = list(sizes)
        for axis, own in enumerate(stage.axes):
            if own:
                sizes[axis] = work.outputs[axis]
        positions = before if work.transposed else sizes
        total += BATCH * prod(positions) * prod(stage.weight_shape(shape))
    return total


@given(
    scheme=st.sampled_from(Scheme),
    kernel=st.sampled_from([(), (3,), (3, 2), (2, 3, 2)]),
    transposed=st.booleans(),
    num_slices=st.sampled_from([1, 2]),
    rank=st.integers(1, 3),
)
def test_every_factor_is_applied_at_each_position_of_its_output_or_input(
    scheme: Scheme, kernel: tuple[int, ...], transposed: bool, num_slices: int, rank: int
) -> None:
    shape = LayerShape(out_features=5, in_channels=4, kernel=kernel)
    small, large = tuple(range(3, 3 + len(kernel))), tuple(range(7, 7 + len(kernel)))
    before, after = (small, large) if transposed else (large, small)
    dense = BATCH * prod(small) * shape.num_parameters
    work = Work(macs=dense, inputs=before, outputs=after, transposed=transposed)
    k = num_slices if scheme.structure.sliced(shape) else 1
    cut = Cut(num_slices=k, rank=rank, scheme=scheme, rank_out=2)
    assert work.of_cut(shape, cut) == counted(shape, cut, work)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("scheme", Scheme, ids=lambda s: s.value)
def test_unknown_inputs_matter_where_a_factor_is_applied_elsewhere(
    scheme: Scheme, transposed: bool
) -> None:
    shape = LayerShape(out_features=5, in_channels=4, kernel=(3, 3))
    work = Work(macs=2 * shape.num_parameters, inputs=None, outputs=(2, 1), transposed=transposed)
    known = work.uses(shape, scheme) is not None
    assert known == (scheme is (Scheme.DECODE if transposed else Scheme.ENCODE))


def test_a_product_is_a_layer_without_a_kernel() -> None:
    shape = LayerShape(out_features=5, in_channels=4)
    assert Work(macs=7 * shape.num_parameters).uses(shape, Scheme.ENCODE) == (7, 7)
