"""Only cuts that are faster: what is chosen is timed, and the search runs again without the slow.

A cut is slow if the layer on its own (`graph.alone`) takes longer with it than without. Then
smaller ranks with as many slices, aligned to the runtime's blocks or not as this one, are timed
too, and those above the largest that is faster are banned. In the end all are faster, or stay
whole. If that leaves too little for a budget, slow cuts come back, those that cost least time
first: a budget is kept whenever it can be.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import TypeVar

from alds_onnx.cuts import Cut, LayerShape, Scheme, Spectra, Work
from alds_onnx.errors import BudgetError
from alds_onnx.evaluate.sessions import Execution, Feeds, RunError, Session
from alds_onnx.evaluate.timing import Timing, in_turns, time_cuts
from alds_onnx.evaluate.timings import Timings
from alds_onnx.graph.alone import Alone, alone, zero_factors
from alds_onnx.graph.files.external import is_large
from alds_onnx.graph.layers import Layer
from alds_onnx.graph.rewrite import Replacement, rewrite
from alds_onnx.graph.scopes import Key, Site
from alds_onnx.runtimes import Runtime, preset
from alds_onnx.search.costs import Ban
from alds_onnx.settings import Measuring, Settings, Step
from alds_onnx.steps.budgets import Limit
from alds_onnx.steps.clock import Clock
from alds_onnx.steps.decide import Bans, decide
from alds_onnx.steps.survey import Survey, Weight
from alds_onnx.values import SearchMethod

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

# Models with fewer multiply-accumulates run for less than a fraction of a millisecond, which is as
# much as the call takes; those with more take more than about half a minute to time.
_FEWEST_MACS, _MOST_MACS = 5_000_000, 20_000_000_000
# Searches until layers that are still slow may have one slice of the paper's scheme only.
_ROUNDS = 10
# Searches at most; what is slow then is said to be.
_MOST_ROUNDS = 30
# Seconds, and most runs, of timing a whole model against the original.
_WHOLE_SECONDS, _MOST_WHOLE = 5.0, 1000
# Ranks that are tried where one is slow, as parts of it.
_SMALLER = (0.75, 0.5, 0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow:
    """A cut that is slower than the layer: its weight's name, and nanoseconds of both."""

    name: str
    cut: Cut
    timing: Timing


class Pace:
    """Times of cuts of the layers of one model, measured when they are asked for.

    Parameters
    ----------
    survey, shapes
        The model, and the shapes of its tensors in one run, where known.
    execution
        How onnxruntime runs it.
    timings
        What is known already.
    clock
        Told as the measuring goes on.
    """

    def __init__(
        self,
        survey: Survey,
        shapes: Mapping[Key, tuple[int, ...]],
        execution: Execution,
        timings: Timings,
        clock: Clock,
    ) -> None:
        self._execution, self._timings, self._clock = execution, timings, clock
        self._places = {weight.name: _places(survey, weight, shapes) for weight in survey.weights()}
        self._shapes = {weight.name: weight.layers[0].shape for weight in survey.weights()}
        self._survey = survey
        self._failed: set[tuple[str, Cut]] = set()

    def measure(self, wanted: Iterable[tuple[str, Cut]]) -> None:
        """Time cuts of weights, each in all places where its layers stand."""
        groups: dict[str, tuple[Alone, list[Cut]]] = {}
        for name, cut in wanted:
            for place in self._places.get(name, ()):
                known = self._timings.get(place.key, cut) or (place.key, cut) in self._failed
                _, cuts = groups.setdefault(place.key, (place, []))
                if not known and cut not in cuts:
                    cuts.append(cut)
        missing = [group for group in groups.values() if group[1]]
        if not missing:
            return
        step = self._clock.start(Step.TIMING)
        for done, (place, cuts) in enumerate(missing, start=1):
            self._time(place, cuts)
            self._clock.advance(done, len(missing))
        self._clock.start(step)

    def _time(self, place: Alone, cuts: Sequence[Cut]) -> None:
        try:
            found = time_cuts(place, cuts, self._execution)
        except RunError as e:
            _log.info("a layer on its own was not timed: %s", e)
            self._failed.update((place.key, cut) for cut in cuts)
            return
        for cut, timing in zip(cuts, found, strict=True):
            self._timings.add(place.key, cut, timing)

    def timing(self, name: str, cut: Cut) -> Timing | None:
        """Times of a weight's layers together; None where one was not or cannot be measured."""
        found = [self._timings.get(place.key, cut) for place in self._places.get(name, ())]
        known = [timing for timing in found if timing is not None]
        if not known or len(known) != len(found):
            return None
        return Timing(dense=sum(t.dense for t in known), cut=sum(t.cut for t in known))

    def whole(self, cuts: Mapping[str, Cut], feeds: Feeds) -> Timing:
        """Times of the whole model, as it is and with these cuts, whose factors are zeros.

        Raises
        ------
        RunError
            If onnxruntime does not run one of them.
        """
        loaded = self._survey.loaded
        replacements = [
            Replacement(layers=weight.layers, factors=zero_factors(weight.layers[0], cut))
            for weight in self._survey.weights()
            if (cut := cuts.get(weight.name)) is not None
        ]
        changed = [rewrite(loaded.model, replacements)] if replacements else []
        models = [loaded.model, *changed]
        sessions = [Session(model, loaded.folder, self._execution) for model in models]
        before, *after = in_turns(sessions, feeds, _WHOLE_SECONDS, most=_MOST_WHOLE)
        return Timing(dense=before, cut=after[0] if after else before)

    def slow(self, cuts: Mapping[str, Cut]) -> list[Slow]:
        """Those cuts that take longer than the dense layers."""
        self.measure(cuts.items())
        timed = ((name, cut, self.timing(name, cut)) for name, cut in cuts.items())
        return [
            Slow(name=name, cut=cut, timing=timing)
            for name, cut, timing in timed
            if timing is not None and timing.saved < 0
        ]

    def bans(self, slow: Sequence[Slow]) -> dict[str, tuple[Ban, ...]]:
        """What to ban so that none of these cuts comes again, nor others like it."""
        smaller = {one.name: _smaller(self._shapes[one.name], one.cut) for one in slow}
        self.measure((name, cut) for name, cuts in smaller.items() for cut in cuts)
        return {one.name: self._alike(one, self._ban(one, smaller[one.name])) for one in slow}

    def _ban(self, slow: Slow, smaller: Sequence[Cut]) -> Ban:
        """Ranks above the largest that is faster, between two measured ones by a straight line.

        Of Tucker-2 all: its second rank has a part in how fast it is.
        """
        block = block_of(self._shapes[slow.name])
        above, beyond = 0, (slow.cut.rank, slow.timing.saved)
        for cut in smaller:  # descending
            timing = self.timing(slow.name, cut)
            if timing is None:
                continue
            if timing.saved >= 0:
                steps = (beyond[0] - cut.rank) * timing.saved / (timing.saved - beyond[1])
                above = cut.rank + int(steps)
                break
            beyond = cut.rank, timing.saved
        if slow.cut.scheme is Scheme.TUCKER2:
            return Ban(scheme=slow.cut.scheme, num_slices=1, above=0)
        return Ban(
            scheme=slow.cut.scheme,
            num_slices=slow.cut.num_slices,
            above=min(above, slow.cut.rank - 1),
            block=block,
            aligned=slow.cut.rank % block == 0,
        )

    def _alike(self, slow: Slow, ban: Ban) -> tuple[Ban, ...]:
        """The same for all numbers of slices, where unaligned slices are slow at any rank.

        onnxruntime then runs them on its slow path, and that is slow whatever their number.
        """
        if ban.aligned or ban.above or ban.num_slices == 1:
            return (ban,)
        several = (k for k in self._counts(slow.name, ban.scheme) if k > 1)
        return tuple(replace(ban, num_slices=k) for k in several)

    def all_but_plain(self, name: str) -> tuple[Ban, ...]:
        """Leave one slice of the paper's scheme only."""
        return tuple(
            Ban(scheme=scheme, num_slices=k, above=0)
            for scheme in self._shapes[name].distinct(Scheme)
            for k in self._counts(name, scheme)
            if k > 1 or scheme is not Scheme.ENCODE
        )

    def _counts(self, name: str, scheme: Scheme) -> tuple[int, ...]:
        """Numbers of slices that a scheme can have."""
        if scheme is Scheme.TUCKER2:
            return (1,)
        return self._shapes[name].folded(scheme).slice_counts()

    def save(self) -> None:
        """Keep the times for other runs."""
        self._timings.save()


def _places(
    survey: Survey, weight: Weight, shapes: Mapping[Key, tuple[int, ...]]
) -> tuple[Alone, ...]:
    """The layers that read a weight, on their own; none if one of them cannot be timed."""
    found = []
    for layer in weight.layers:
        shape = shapes.get(_operand(survey, layer))
        if layer.site.scope != 0 or not shape or 0 in shape:
            return ()
        found.append(alone(survey.index, layer, shape))
    return tuple(found)


def _operand(survey: Survey, layer: Layer) -> Key:
    """The tensor that a layer multiplies its weight with."""
    name = survey.index.node(layer.site).input[1 - layer.weight_input]
    definition = survey.index.resolve(layer.site.scope, name)
    return definition.key if definition else Key(layer.site.scope, name)


def block_of(shape: LayerShape) -> int:
    """What the ranks of a layer are aligned to in onnxruntime."""
    return preset(Runtime.ORT).block if shape.kernel else 1


def _smaller(shape: LayerShape, cut: Cut) -> list[Cut]:
    """A few smaller ranks of the same kind, descending; none of Tucker-2."""
    if cut.scheme is Scheme.TUCKER2:
        return []
    block, ranks = block_of(shape), []
    for part in _SMALLER:
        rank = int(part * cut.rank)
        if cut.rank % block == 0:
            rank -= rank % block
        elif rank % block == 0:
            rank -= 1
        if rank > 0 and rank not in ranks:
            ranks.append(rank)
    return [Cut(num_slices=cut.num_slices, rank=rank, scheme=cut.scheme) for rank in ranks]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Paced:
    """What is banned, and the cuts that are slower all the same, because a budget wants them."""

    bans: Bans
    slow: tuple[Slow, ...]


def without_slow(
    choose: Callable[[Bans], _T],
    cuts: Callable[[_T], Mapping[str, Cut]],
    pace: Pace,
    bans: Bans,
) -> tuple[_T, Paced]:
    """Search until all that is chosen is faster; see above.

    Parameters
    ----------
    choose
        The search.
    cuts
        Reads the cuts of what it found.
    pace
        Measures.
    bans
        To begin with.

    Raises
    ------
    BudgetError
        If a budget is out of reach whatever the time.
    """
    banned = {name: tuple(own) for name, own in bans.items()}
    worst: dict[str, float] = {}  # nanoseconds that a weight's slow cuts lost
    spared: frozenset[str] = frozenset()
    for attempt in count(1):
        found, spared = _within_reach(choose, banned, worst, spared)
        slow = pace.slow(cuts(found))
        new = [one for one in slow if one.name not in spared]
        if not new or attempt == _MOST_ROUNDS:
            return found, Paced(bans=_left(banned, spared), slow=tuple(slow))
        for one in new:
            worst[one.name] = max(worst.get(one.name, 0.0), -one.timing.saved)
        fresh = pace.bans(new)
        if attempt >= _ROUNDS:
            fresh = {name: (*own, *pace.all_but_plain(name)) for name, own in fresh.items()}
        banned |= {name: (*banned.get(name, ()), *own) for name, own in fresh.items()}
    raise AssertionError  # the last round returns


def _left(bans: Bans, spared: frozenset[str]) -> Bans:
    return {name: own for name, own in bans.items() if name not in spared}


def _within_reach(
    choose: Callable[[Bans], _T], bans: Bans, worst: Mapping[str, float], spared: frozenset[str]
) -> tuple[_T, frozenset[str]]:
    """Search, and lift the bans of as few weights as the budgets need, the cheapest first."""
    try:
        return choose(_left(bans, spared)), spared
    except BudgetError:
        order = sorted((n for n in bans if n not in spared), key=lambda n: (worst.get(n, 0.0), n))
    low, high = 0, len(order)  # lifting none is not enough
    while high - low > 1:
        middle = (low + high) // 2
        try:
            choose(_left(bans, spared | set(order[:middle])))
            high = middle
        except BudgetError:
            low = middle
    spared |= set(order[:high])
    return choose(_left(bans, spared)), spared


def decide_in_time(
    curves: Mapping[str, Spectra], settings: Settings, limits: Sequence[Limit], pace: Pace | None
) -> dict[str, Cut]:
    """The cut of each weight that is decomposed (`steps.decide`), none of them slow if need be.

    Raises
    ------
    BudgetError
        If a budget is out of reach.
    """
    if pace is None or settings.allow_slower:
        return decide(curves, settings, limits)
    cuts, _ = without_slow(
        lambda bans: decide(curves, settings, limits, bans), lambda cuts: cuts, pace, {}
    )
    return cuts


def make_pace(
    survey: Survey,
    shapes: Mapping[Key, tuple[int, ...]],
    work: Mapping[Site, Work],
    settings: Settings,
    clock: Clock,
) -> Pace | None:
    """What times cuts, if they are to be timed."""
    wanted = settings.measuring
    by_heart = settings.plan is not None or settings.search is SearchMethod.ITERATIVE
    if by_heart or is_large(survey.loaded.model):
        return None
    if settings.latency_ratio is not None:
        wanted = Measuring.ALWAYS
    if wanted is Measuring.NEVER:
        return None
    cheap = _FEWEST_MACS <= sum(own.macs for own in work.values()) <= _MOST_MACS
    if wanted is Measuring.CHEAP and not cheap:
        return None
    execution = Execution(threads=settings.threads, provider=settings.provider)
    timings = Timings(execution, settings.timings, fresh=settings.remeasure)
    return Pace(survey, shapes, execution, timings, clock)
