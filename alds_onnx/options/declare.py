"""What a declaration of an option consists of.

An option is a field of a group, which is a dataclass. The field has the name, the type and the
default of the keyword in Python; its metadata hold an `Option` with everything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, FrozenInstanceError, dataclass, field, fields
from enum import Enum
from typing import Any, ClassVar, Generic, ParamSpec, Protocol, TypeVar, overload

_T = TypeVar("_T")
_Params = ParamSpec("_Params")
_Given = TypeVar("_Given")
_Held = TypeVar("_Held")


class Heading(str, Enum):
    """The headings in `--help`, in their order."""

    HOW_FAR = "How far"
    RANKS = "Which layers, which ranks"
    DATA = "Real data"
    CHECKS = "Checks"
    OUTPUT = "Output"


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """How an option appears on the command line and in the documentation.

    Texts name other options by their flags; the documentation of Python shows the keywords instead.

    Attributes
    ----------
    flag
        The name on the command line and what stands for the value, such as `--cr FRACTION` or
        `--measure/--no-measure`; "" for an option that only Python has.
    heading
        Where `--help` lists it; None for the heading of its group.
    help
        The text of `--help`, at most three lines on a terminal of 80 columns.
    python
        What the documentation of Python says instead of `help`; "" where it says the same.
    more
        Sentences that follow in both documentations, and not in `--help`.
    parse
        Converts the text from the command line; raises ValueError with a message if it cannot. None
        where the keyword's type does so (`bool`, `int`, `float`, `Path`), or where it stays text.
    choices
        The words that are allowed and the values that they stand for, instead of `parse`.
    load
        Makes the value that Python takes from a parsed one, once the outputs have been checked.
    repeatable
        Whether the option may be given several times; its value is then a tuple.
    """

    flag: str = ""
    heading: Heading | None = None
    help: str = ""
    python: str = ""
    more: str = ""
    parse: Callable[[str], object] | None = None
    choices: Mapping[str, object] | None = None
    load: Callable[[Any], object] | None = None
    repeatable: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """The names on the command line: that of a switch, and that which turns it off."""
        return tuple(self.flag.split(" ")[0].split("/")) if self.flag else ()

    @property
    def metavar(self) -> str | None:
        """What stands for the value in `--help`; None for what click shows by default."""
        return self.flag.partition(" ")[2] or None


class _Declare(Protocol[_Params]):
    def __call__(
        self, default: _T, /, *described: _Params.args, **by_name: _Params.kwargs
    ) -> _T: ...


def _as_fields(record: Callable[_Params, Option]) -> _Declare[_Params]:
    def declare(default: Any, /, *described: _Params.args, **by_name: _Params.kwargs) -> Any:
        return field(default=default, metadata={"option": record(*described, **by_name)})

    return declare


#: Declares an option: a field with this default and an `Option` of the other arguments.
option = _as_fields(Option)


class Converted(Generic[_Given, _Held]):
    """An option that is given as one type and held as another; it is converted when it is set.

    A type checker sees `_Given` in the constructor, and `_Held` where the attribute is read. The
    default is converted too. `convert` gets the group, in which the options declared earlier are
    set, and the value. A held value is converted to itself, so that `dataclasses.replace` works.
    """

    def __init__(self, default: _Given, convert: Callable[[Any, _Given], _Held]) -> None:
        self.default = default
        self._convert = convert
        self._name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type) -> Converted[_Given, _Held]: ...
    @overload
    def __get__(self, instance: object, owner: type) -> _Held: ...
    def __get__(self, instance: object | None, owner: type) -> Converted[_Given, _Held] | _Held:
        if instance is None:
            return self
        held: _Held = vars(instance)[self._name]
        return held

    def __set__(self, instance: object, value: _Given) -> None:
        given: Any = value
        if given is self:  # the default of the dataclass's field is the descriptor itself
            given = self.default
        vars(instance)[self._name] = self._convert(instance, given)


class Options:
    """Base of the groups: each option is set once, and a group checks its own options.

    The groups are not frozen dataclasses, because mypy 2.4 then takes the type in the constructor
    for that of the attribute. `heading` is where `--help` lists the options of a group.
    """

    heading: ClassVar[Heading] = Heading.OUTPUT

    def __setattr__(self, name: str, value: object) -> None:
        if name in vars(self):
            raise FrozenInstanceError(f"cannot assign to option '{name}'")
        object.__setattr__(self, name, value)

    def check(self) -> None:
        """Refuse values that make no sense; a group calls that of the next one first."""


def declared(group: type[Options]) -> Iterator[tuple[Field[Any], Option]]:
    """The options of a group and of those that it inherits from, in their order."""
    for found in fields(group):  # type: ignore[arg-type] # every group is a dataclass
        if "option" in found.metadata:
            yield found, found.metadata["option"]


def given_default(default: Any) -> Any:
    """The default of a field as Python's signature shows it."""
    return default.default if isinstance(default, Converted) else default


def shared(options: Options, kind: type[Options]) -> dict[str, Any]:
    """The values of those options that `kind` has too, by name."""
    names = [found.name for found, _ in declared(kind)]
    return {name: value for name, value in vars(options).items() if name in names}
