"""Which (k, j) may be chosen, so that the pair is fast in the runtime that will run it.

A rule over sizes, applied before anything is searched: what the search finds is the optimum over
the pairs that are allowed, not a rounded one. Where that loses too much (`search.choose`), a finer
rule takes its place: at high ratios small ranks of many slices are what keeps the accuracy. One
slice with a rank below the block is allowed in every preset, and with it the smallest cut there is
(k = 1, j = 1): what can be reached does not depend on the runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from alds_onnx.cuts import Cut, LayerShape
from alds_onnx.runtimes import Preset, Runtime, preset


@dataclass(frozen=True, slots=True, kw_only=True)
class Alignment:
    """A rule for (k, j).

    Attributes
    ----------
    preset
        What the runtime is fast at.
    any_single_rank
        Whether one slice may have any rank: less fast, but in steps of 1.
    """

    preset: Preset
    any_single_rank: bool = False

    @property
    def is_free(self) -> bool:
        """Whether everything is allowed."""
        return self.preset.runtime is Runtime.NONE

    def tiers(self) -> tuple[Alignment, ...]:
        """The rule, then those that allow more, as they cost time; the same slices at most."""
        if self.is_free:
            return (self,)
        unaligned = replace(self, preset=replace(self.preset, block=1))
        return self, replace(self, any_single_rank=True), unaligned

    def allows(self, shape: LayerShape, cut: Cut) -> bool:
        """Whether a cut follows the rule; if it has two ranks, both have to."""
        return all(
            one.rank in self.ranks(one.fold.sizes(shape), one.num_slices, one.rank)
            for one in cut.scheme.structure.projections(cut)
        )

    def counts(self, shape: LayerShape, counts: Sequence[int]) -> tuple[int, ...]:
        """Those k of `counts` for which a rank is allowed that saves parameters."""
        return tuple(k for k in counts if self.ranks(shape, k, shape.max_rank(k)).size)

    def ranks(self, shape: LayerShape, num_slices: int, highest: int) -> npt.NDArray[np.int64]:
        """The ranks that are allowed at k slices (k divides c), ascending, up to `highest`.

        `shape` is that of the fold that is cut. The rule is the same for all: what it aligns are
        the channels between the convolutions (j) and those that a group reads (c/k).
        """
        ranks = np.arange(1, highest + 1, dtype=np.int64)
        known, k, c = self.preset, num_slices, shape.in_channels
        if not shape.kernel:
            return ranks if _within(k, known.most_product_slices) else ranks[:0]
        aligned = np.equal(ranks % known.block, 0)
        if k == 1:
            small = np.less(ranks, known.block)
            wanted = aligned | small | self.any_single_rank
            return ranks[wanted]
        width = c // k
        if width % known.block == 0 and _within(k, known.most_slices):
            return ranks[aligned]
        if known.depthwise and width == 1 and c % known.block == 0 and len(shape.kernel) == 2:
            return ranks[:1]
        return ranks[:0]


def _within(k: int, most: int | None) -> bool:
    return most is None or k <= most


#: Everything is allowed.
FREE = Alignment(preset=preset(Runtime.NONE))
