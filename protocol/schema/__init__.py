"""Our description of every message: the `*.schema` files beside this module, and their parser.

The facts are those of Apache Kafka 4.3.0's message definitions, restated in this notation. One line per field;
indentation nests.

    message MetadataResponse 0-13 flexible 9+
      throttle_time_ms int32 3+ ignorable
      topics []MetadataResponseTopic
        name string?12+
        topic_id uuid 10+ ignorable
      cluster_id string? 2+ = null ignorable

A message line has the valid versions, from which version on the encoding is flexible (compact lengths, tagged fields),
and for the keys and values of internal topics `record` with the record type. A field line is

    name type[?[versions]] [versions] [= default] [#tag[@versions]] [ignorable] [rigid]

- type: bool, int8, int16, int32, int64, uint16, uint32, float64, uuid, string, bytes, records, or the name of a struct,
  whose fields follow, indented, where it is named first; `[]` in front makes an array of it. A struct that is used more
  than once, or before it is described, has a `struct Name` line of its own at the message's first level.
- `?` the value may be null, in the versions that follow it at once or in all.
- versions `a+`, `a-b` or `a`: where the field exists; none: everywhere. Meaningless outside the message's versions.
- the default is what a version without the field decodes to; without one it is 0, false, "", empty, the zero uuid.
- `#tag`: a tagged field, in the versions after `@`, else wherever the field exists.
- `ignorable`: versions without the field silently leave it out; else a value other than the default is an error there.
- `rigid`: never compact, not even in flexible versions.

`#` with a space after it begins a comment.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

VERSION_MAX = 32767

#: The format letters of the types of fixed size, for `struct`, big-endian.
FIXED = {
    "bool": "?",
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "uint16": "H",
    "uint32": "I",
    "float64": "d",
    "uuid": "16s",
}
_VARIABLE = ("string", "bytes", "records")

Default = None | bool | int | float | str | bytes | list[object]


class SchemaError(ValueError):
    """A line of a schema file that is not in the notation."""


@dataclass(slots=True)
class Field:
    """One field. `struct` is set where `type` names one; `versions` and the like are ranges of versions."""

    name: str
    type: str
    array: bool
    versions: range
    nullable: range
    default: Default
    tag: int | None
    tagged: range
    ignorable: bool
    rigid: bool
    struct: "Struct | None" = None


@dataclass(slots=True)
class Struct:
    name: str
    fields: list[Field] = field(default_factory=list)


@dataclass(slots=True)
class Message:
    """`flexible` is the range of flexible versions; `record_type` begins the key of an internal topic's record."""

    name: str
    versions: range
    flexible: range
    record_type: int | None
    root: Struct
    structs: dict[str, Struct]


def names() -> list[str]:
    """Every message there is, in the order of the files."""
    return list(_blocks())


@cache
def load(name: str) -> Message:
    """KeyError if there is no such message."""
    return _parse(_blocks()[name])


@cache
def _blocks() -> dict[str, list[str]]:
    """The lines of each message, by name. Parsing waits until a message is wanted."""
    blocks: dict[str, list[str]] = {}
    paths = [path for path in files(__name__).iterdir() if path.name.endswith(".schema")]
    for path in sorted(paths, key=lambda path: path.name):
        lines: list[str] = []
        for line in path.read_text(encoding="utf-8").splitlines():
            line = line.partition("# ")[0].rstrip()
            if line.startswith("message "):
                lines = [line]
                if blocks.setdefault(line.split()[1], lines) is not lines:
                    raise SchemaError(f"{path.name}: {line.split()[1]} is there already")
            elif line and line != "#":
                lines.append(line)
    return blocks


def _parse(lines: list[str]) -> Message:
    words = lines[0].split()[1:]
    name, versions, flexible, record_type = words[0], parse_versions(words[1]), range(0), None
    for option, value in zip(words[2::2], words[3::2], strict=True):
        if option == "flexible":
            flexible = parse_versions(value)
        elif option == "record":
            record_type = int(value)
        else:
            raise SchemaError(f"{name}: what is {option!r}?")
    message = Message(name, versions, flexible, record_type, Struct(name), {})
    _parse_fields(message, lines)
    for struct in (message.root, *message.structs.values()):
        for item in struct.fields:
            if item.type not in FIXED and item.type not in _VARIABLE:
                item.struct = message.structs.get(item.type)
                if item.struct is None:
                    raise SchemaError(f"{name}: {struct.name}.{item.name} is of unknown type {item.type}")
    return message


def _parse_fields(message: Message, lines: list[str]) -> None:
    """Fills the message's root and structs from the lines below its first."""
    open_structs = [message.root]
    for line in lines[1:]:
        depth, odd = divmod(len(line) - len(line.lstrip()), 2)
        if odd or not 1 <= depth <= len(open_structs):
            raise SchemaError(f"{message.name}: indentation of {line!r}")
        del open_structs[depth:]
        words = line.split()
        if words[0] == "struct":
            type_name = words[1]
        else:
            item = _parse_field(words)
            if any(other.name == item.name for other in open_structs[-1].fields):
                raise SchemaError(f"{message.name}: {item.name} is there twice")
            open_structs[-1].fields.append(item)
            type_name = item.type
        if type_name[0].isupper():
            # A later mention without fields below it is a reference; fields below would be described twice.
            open_structs.append(message.structs.setdefault(type_name, Struct(type_name)))


def _parse_field(words: list[str]) -> Field:
    name, spelled, *rest = words
    spelled, question, nullable = spelled.partition("?")
    array = spelled.startswith("[]")
    base = spelled.removeprefix("[]")
    versions = range(VERSION_MAX + 1)
    if rest and rest[0][0].isdigit():
        versions = parse_versions(rest.pop(0))
    default = zero(base, array)
    if rest and rest[0] == "=":
        default = _parse_default(base, array, rest[1])
        rest = rest[2:]
    tag, tagged = None, range(0)
    if rest and rest[0].startswith("#"):
        number, _, at = rest.pop(0)[1:].partition("@")
        tag, tagged = int(number), parse_versions(at) if at else versions
    flags = set(rest)
    if flags - {"ignorable", "rigid"}:
        raise SchemaError(f"field {name}: {' '.join(rest)}")
    null_in = range(0) if not question else parse_versions(nullable) if nullable else versions
    return Field(name, base, array, versions, null_in, default, tag, tagged, "ignorable" in flags, "rigid" in flags)


def parse_versions(text: str) -> range:
    """`3+`, `3-5` or `3`."""
    if text.endswith("+"):
        return range(int(text[:-1]), VERSION_MAX + 1)
    low, _, high = text.partition("-")
    return range(int(low), int(high or low) + 1)


def zero(base: str, array: bool) -> Default:
    """The value of a field without a stated default. For a struct it stands for the struct with its own defaults."""
    if array:
        return []
    if base == "records":
        return None
    zeros: dict[str, Default] = {"string": "", "bytes": b"", "bool": False, "float64": 0.0, "uuid": bytes(16)}
    return zeros.get(base, 0)


def _parse_default(base: str, array: bool, text: str) -> Default:
    if text == "null":
        return None
    if base == "bool":
        return {"true": True, "false": False}[text]
    if array or base in ("string", "bytes", "records", "uuid"):
        raise SchemaError(f"a {base} cannot default to {text}")
    return float(text) if base == "float64" else int(text, 0)


def fields_in(struct: Struct, version: int) -> Iterator[Field]:
    """The untagged fields that `version` has, in wire order."""
    return (item for item in struct.fields if version in item.versions and version not in item.tagged)


def tagged_in(struct: Struct, version: int) -> list[Field]:
    """The tagged fields that `version` has, by tag."""
    found = [item for item in struct.fields if version in item.versions and version in item.tagged]
    return sorted(found, key=lambda item: item.tag or 0)
