"""Tagged positional encoding of small frozen dataclasses: facts, commands and answers.

An instance becomes `[tag, field, field, ...]`, fields in the order of the class, nested tuples likewise. A class may
grow at its end by fields with defaults: shorter payloads of older writers are filled up. A payload that is longer
than the class, or a tag nobody registered, was written by a newer version and is refused, never skipped.
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
    names, required = _shape(kind)
    converts = [converter(hints[name]) for name in names]

    def convert(value: Any) -> Any:
        if type(value) is not tuple or len(value) < required:
            raise Malformed(f"expected the fields of {kind.__name__}")
        if len(value) > len(converts):
            raise UnknownTag(f"{kind.__name__} with {len(value)} fields, this version knows {len(converts)}")
        return kind(*[convert(item) for convert, item in zip(converts, value)])

    return convert


def _shape(cls: Any) -> tuple[list[str], int]:
    """Field names in order, and how many of them have no default."""
    if issubclass(cls, tuple):
        return list(cls._fields), len(cls._fields) - len(cls._field_defaults)
    fields = dataclasses.fields(cls)
    missing = dataclasses.MISSING
    return [f.name for f in fields], sum(f.default is missing and f.default_factory is missing for f in fields)


class Registry:
    """Tag <-> class of one family. Tags are written to disk: never reuse one, never change one."""

    def __init__(self, family: str) -> None:
        self.family = family
        self._by_tag: dict[int, tuple[type, list[Convert], int]] = {}
        self._tags: dict[type, tuple[int, list[str]]] = {}

    def register(self, tag: int, cls: type) -> None:
        """Binds `tag` to `cls`, a dataclass or a named tuple."""
        assert tag not in self._by_tag, f"{self.family} tag {tag} is taken"
        names, required = _shape(cls)
        hints = typing.get_type_hints(cls)
        self._by_tag[tag] = (cls, [converter(hints[name]) for name in names], required)
        self._tags[cls] = (tag, names)

    def tags(self) -> dict[int, type]:
        """Every tag with its class."""
        return {tag: entry[0] for tag, entry in self._by_tag.items()}

    def encode(self, value: object) -> list[Any]:
        """`[tag, fields...]`, ready for msgpack."""
        tag, names = self._tags[type(value)]
        return [tag, *[getattr(value, name) for name in names]]

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
