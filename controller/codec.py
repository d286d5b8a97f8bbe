"""Tagged positional encoding of small frozen dataclasses: facts, commands and answers.

An instance becomes `[tag, field, field, ...]`, fields in the order of the class, nested tuples likewise. A class may
grow at its end by fields with defaults: shorter payloads of older writers are filled up, and a later field that says
nothing but its default is left out, so that older readers understand the rest. A payload that is longer than the class,
or a tag nobody registered, was written by a newer version and is refused, never skipped.
"""

import dataclasses
import types
import typing
from collections.abc import Callable
from typing import Any, cast

Convert = Callable[[Any], Any]


class UnknownTag(ValueError):
    """A tag or a longer payload that only a newer version can read."""


class Malformed(ValueError):
    """A payload that no version writes."""


def converter(kind: Any) -> Convert:
    """A function that turns decoded msgpack (nested tuples) into a value of the annotation `kind`, or raises
    `Malformed`.
    """
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        return _optional(kind)
    if origin is tuple:
        return _tuple(typing.get_args(kind))
    if isinstance(kind, type) and issubclass(kind, tuple):
        return _named_tuple(kind)
    if kind is Any:
        return lambda value: value
    if kind in (int, str, bytes, bool, float):
        return _scalar(kind)
    raise TypeError(f"no encoding for fields of type {kind!r}")


def _scalar(kind: type) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) is not kind:
            raise Malformed(f"expected {kind.__name__}, found {type(value).__name__}")
        return value

    return convert


def _optional(kind: Any) -> Convert:
    inner = [arm for arm in typing.get_args(kind) if arm is not type(None)]
    if len(inner) != 1:
        raise TypeError(f"no encoding for fields of type {kind!r}: a union is `X | None`")
    convert = converter(inner[0])
    return lambda value: None if value is None else convert(value)


def _tuple(arms: tuple[Any, ...]) -> Convert:
    if len(arms) == 2 and arms[1] is Ellipsis:
        convert = converter(arms[0])

        def many(value: Any) -> Any:
            if type(value) is not tuple:
                raise Malformed(f"expected a list, found {type(value).__name__}")
            return tuple([convert(item) for item in value])

        return many
    converts = [converter(arm) for arm in arms]

    def fixed(value: Any) -> Any:
        if type(value) is not tuple or len(value) != len(converts):
            raise Malformed(f"expected {len(converts)} items")
        return tuple([convert(item) for convert, item in zip(converts, value)])

    return fixed


def _named_tuple(kind: Any) -> Convert:
    hints = typing.get_type_hints(kind)
    names, defaults = _shape(kind)
    required = len(names) - len(defaults)
    converts = [converter(hints[name]) for name in names]

    def convert(value: Any) -> Any:
        if type(value) is not tuple or len(value) < required:
            raise Malformed(f"expected the fields of {kind.__name__}")
        if len(value) > len(converts):
            raise UnknownTag(f"{kind.__name__} with {len(value)} fields, this version knows {len(converts)}")
        return kind(*[convert(item) for convert, item in zip(converts, value)])

    return convert


def _shape(cls: Any) -> tuple[list[str], list[Any]]:
    """Field names in order, and the defaults of the last ones."""
    if issubclass(cls, tuple):
        return list(cls._fields), list(cls._field_defaults.values())
    fields = dataclasses.fields(cls)
    return [f.name for f in fields], [f.default for f in fields if f.default is not dataclasses.MISSING]


class Registry:
    """Tag <-> class of one family. Tags are written to disk: never reuse one, never change one."""

    def __init__(self, family: str) -> None:
        self.family = family
        self._by_tag: dict[int, tuple[type, list[Convert], int]] = {}
        self._tags: dict[type, tuple[int, list[str]]] = {}
        self._later: dict[type, list[Any]] = {}

    def register(self, tag: int, cls: type, first_fields: int | None = None) -> None:
        """Binds `tag` to `cls`, a dataclass or a named tuple; `first_fields`: how many fields it had at first, if it
        has grown since.
        """
        assert tag not in self._by_tag, f"{self.family} tag {tag} is taken"
        names, defaults = _shape(cls)
        required = len(names) - len(defaults)
        hints = typing.get_type_hints(cls)
        self._by_tag[tag] = (cls, [converter(hints[name]) for name in names], required)
        self._tags[cls] = (tag, names)
        if first_fields is not None:
            assert required <= first_fields < len(names), f"{cls.__name__} grows by fields with defaults"
            self._later[cls] = defaults[first_fields - required :]

    def tags(self) -> dict[int, type]:
        """Every tag with its class."""
        return {tag: entry[0] for tag, entry in self._by_tag.items()}

    def encode(self, value: object) -> list[Any]:
        """`[tag, fields...]`, ready for msgpack."""
        tag, names = self._tags[type(value)]
        return [tag, *[getattr(value, name) for name in names[: len(names) - self._silent(value)]]]

    def _silent(self, value: object) -> int:
        """How many fields at the end came later and say nothing but their default."""
        later = self._later.get(type(value))
        if later is None:
            return 0
        names = self._tags[type(value)][1]
        silent = 0
        while silent < len(later) and getattr(value, names[-1 - silent]) == later[-1 - silent]:
            silent += 1
        return silent

    def tag(self, value: object) -> int:
        """The tag of an instance."""
        return self._tags[type(value)][0]

    def says_more(self, value: object) -> bool:
        """Whether a field that came later says something, which those who know only the first ones cannot read."""
        return self._silent(value) < len(self._later.get(type(value), ()))

    def decode(self, payload: Any) -> Any:
        """The instance of `[tag, fields...]` (tuples, as `msgpack.unpackb(use_list=False)` gives them).

        `UnknownTag` for what a newer version wrote, `Malformed` for what nobody writes.
        """
        if type(payload) is not tuple or not payload or type(payload[0]) is not int:
            raise Malformed(f"a {self.family} is a list that begins with its tag")
        found = self._by_tag.get(payload[0])
        if found is None:
            raise UnknownTag(f"{self.family} tag {payload[0]} is not known to this version")
        cls, converts, required = found
        values = payload[1:]
        if len(values) > len(converts):
            raise UnknownTag(f"{cls.__name__} with {len(values)} fields, this version knows {len(converts)}")
        if len(values) < required:
            raise Malformed(f"{cls.__name__} with {len(values)} fields, it has at least {required}")
        return cast(Any, cls)(*[convert(item) for convert, item in zip(converts, values)])
