"""Schema -> Python: a class for every struct, and for each (message, version) one function to decode and one to encode.

The functions are written as straight-line source and compiled at first use. Neighbouring fields of fixed size, the
length that follows them and the empty section of tagged fields are read and written by one `struct` call. Nested
structs are written out in place, so that decoding calls nothing per struct.

Input is hostile: every length and count is checked against the bytes that are left before anything is allocated for it,
nesting is as deep as the schema and no deeper, and whatever is wrong ends in ProtocolError. A count is checked with the
least size an element can have, so decoded objects take at most some dozens of bytes of memory per byte of input.
"""

from collections.abc import Callable
from struct import Struct as Packer
from struct import error as StructError
from typing import Any, ClassVar, Self

from protocol import Buffer
from protocol.apis import APIS
from protocol.errors import ProtocolError
from protocol.framing import uvarint
from protocol.schema import FIXED, Field, Message, Struct, fields_in, tagged_in
from protocol.schema.runtime import (
    STRING_MAX,
    absent_field,
    bad_uuid,
    cut_off,
    finish_varint,
    not_null,
    read_varint,
    skip_tags,
    too_long,
)
from protocol.schema.source import Source


class Data:
    """What all structs have in common. Two are equal when their fields are; keyword-only construction."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]
    _fields: ClassVar[tuple[str, ...]] = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self._fields)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self._fields)})"


class ApiMessage(Data):
    """A message: a struct that can be decoded and encoded, and knows its versions.

    `api_key` is None for what is no request or response, `record_type` for what is no record of an internal topic.
    """

    __slots__ = ()
    schema: ClassVar[Message]
    versions: ClassVar[range]
    flexible: ClassVar[range]
    api_key: ClassVar[int | None]
    record_type: ClassVar[int | None]
    _view: ClassVar[bool]  # has a field of type records, which stays a view of the input
    _decoders: ClassVar[dict[int, Callable[[Any, int], tuple[Any, int]]]]
    _encoders: ClassVar[dict[int, Callable[[Any], list[Buffer]]]]

    @classmethod
    def decode(
        cls, buf: Buffer, version: int, pos: int = 0, end: int | None = None, *, trailing_ok: bool = False
    ) -> Self:
        """The message that `buf[pos:end]` is, to the last byte. Fields the version has not get their defaults.

        `trailing_ok`: bytes behind the message are ignored, as Kafka does with requests.
        ProtocolError: any other bytes; no such version. Fields of type records are views of `buf`, all else is copied.
        """
        decoder = cls._decoders.get(version) or _compile_decoder(cls, version)
        data: bytes | memoryview
        if cls._view:
            data = memoryview(buf)[pos:end]
        elif type(buf) is bytes and pos == 0 and end is None:
            data = buf
        else:
            data = bytes(memoryview(buf)[pos:end])
        size = len(data)
        try:
            decoded, stop = decoder(data, size)
        except (IndexError, StructError):
            raise ProtocolError(f"{cls.__name__} v{version} is cut off after {size} bytes") from None
        except UnicodeDecodeError:
            raise ProtocolError(f"{cls.__name__} v{version} has a string that is not UTF-8") from None
        except ProtocolError as error:
            raise ProtocolError(f"{cls.__name__} v{version}: {error}") from None
        if stop != size and not trailing_ok:
            raise ProtocolError(f"{cls.__name__} v{version} ends at byte {stop} of {size}")
        return decoded  # type: ignore[no-any-return]

    def encode(self, version: int) -> bytes:
        """ProtocolError: no such version; a value that the version cannot say, named in the message."""
        try:
            return b"".join(self.encode_parts(version))
        except TypeError as error:
            raise ProtocolError(f"{type(self).__name__} v{version}: {error}") from error

    def encode_parts(self, version: int) -> list[Buffer]:
        """What `encode` joins: buffers given as records are among the parts as they are, uncopied."""
        encoder = self._encoders.get(version) or _compile_encoder(type(self), version)
        try:
            return encoder(self)
        except ProtocolError as error:
            raise ProtocolError(f"{type(self).__name__} v{version}: {error}") from None
        except (StructError, AttributeError, TypeError, UnicodeEncodeError, OverflowError) as error:
            raise ProtocolError(f"{type(self).__name__} v{version}: {error}") from error


def build(message: Message) -> type[ApiMessage]:
    """The class of a message, with the classes of its structs as attributes."""
    structs = {name: _build_class(struct, Data, message.name) for name, struct in message.structs.items()}
    api_name = message.name.removesuffix("Request").removesuffix("Response")
    keys = [key for key, api in APIS.items() if api.name == api_name and api_name != message.name]
    parsed = (message.root, *message.structs.values())
    body: dict[str, Any] = {
        **structs,
        "schema": message,
        "versions": message.versions,
        "flexible": message.flexible,
        "api_key": keys[0] if keys else None,
        "record_type": message.record_type,
        "_view": any(item.type == "records" for struct in parsed for item in struct.fields),
        "_decoders": {},
        "_encoders": {},
    }
    made: type[ApiMessage] = _build_class(message.root, ApiMessage, "", body)
    for struct in parsed:
        _add_constructor(made if struct is message.root else structs[struct.name], struct, structs)
    return made


def _build_class(struct: Struct, base: type, outer: str, body: dict[str, Any] | None = None) -> type[Any]:
    names = tuple(item.name for item in struct.fields)
    qualified = f"{outer}.{struct.name}" if outer else struct.name
    namespace = {"__slots__": names, "_fields": names, "__module__": "protocol.messages", "__qualname__": qualified}
    return type(struct.name, (base,), namespace | (body or {}))


def _add_constructor(cls: type[Any], struct: Struct, structs: dict[str, type[Any]]) -> None:
    """Gives `cls` its `__init__`: keywords only, defaults as in Kafka, every list and struct a fresh one."""
    source = Source()
    parameters = []
    with source.block("def __init__(self{}):"):
        for item in struct.fields:
            fresh = source.default(item, structs)
            if fresh.endswith(("[]", "()")):
                parameters.append(f"{item.name}=absent")
                source.line(f"self.{item.name} = {fresh} if {item.name} is absent else {item.name}")
            else:
                parameters.append(f"{item.name}={fresh}")
                source.line(f"self.{item.name} = {item.name}")
        if not struct.fields:
            source.line("pass")
    source.lines[0] = source.lines[0].format("".join([", *", *(f", {p}" for p in parameters)]) if parameters else "")
    source.names["absent"] = object()
    cls.__init__ = source.compile(f"{cls.__qualname__}.__init__", "__init__")


def _check_version(cls: type[ApiMessage], version: int) -> None:
    if version not in cls.versions:
        raise ProtocolError(f"{cls.__name__} has no version {version}")


def _compile_decoder(cls: type[ApiMessage], version: int) -> Callable[[Any, int], tuple[Any, int]]:
    _check_version(cls, version)
    writer = _DecoderSource(cls, version)
    decoder: Callable[[Any, int], tuple[Any, int]] = writer.write()
    return cls._decoders.setdefault(version, decoder)


def _compile_encoder(cls: type[ApiMessage], version: int) -> Callable[[Any], list[Buffer]]:
    _check_version(cls, version)
    writer = _EncoderSource(cls, version)
    encoder: Callable[[Any], list[Buffer]] = writer.write()
    return cls._encoders.setdefault(version, encoder)


class _CodecSource(Source):
    def __init__(self, cls: type[ApiMessage], version: int) -> None:
        super().__init__()
        self.message = cls.schema
        self.cls = cls
        self.version = version
        self.flexible = version in cls.schema.flexible
        self.structs = {name: getattr(cls, name) for name in cls.schema.structs}
        self.run: list[tuple[str, str]] = []  # fields of fixed size not yet read or written: format letter, expression

    def compact(self, item: Field) -> bool:
        return self.flexible and not item.rigid

    def least(self, item: Field, array: bool) -> int:
        """The fewest bytes that a field, or one element of it, can take."""
        if array or item.type in ("bytes", "records"):
            return 1 if self.compact(item) else 4
        if item.type in FIXED:
            return Packer(">" + FIXED[item.type]).size
        if item.type == "string":
            return 1 if self.compact(item) else 2
        assert item.struct is not None
        if self.version in item.nullable:
            return 1
        inner = sum(self.least(part, part.array) for part in fields_in(item.struct, self.version))
        return inner + (1 if self.flexible else 0)


class _DecoderSource(_CodecSource):
    """Writes `decode(data, end) -> (message, position after it)`."""

    def write(self) -> Any:
        self.names.update(
            new=object.__new__, read_varint=read_varint, finish_varint=finish_varint,
            skip_tags=skip_tags, cut_off=cut_off, not_null=not_null, ProtocolError=ProtocolError,
        )  # fmt: skip
        with self.block("def decode(data, end):"):
            self.line("pos = 0")
            made = self.struct(self.message.root, self.cls)
            self.line(f"return {made}, pos")
        return self.compile(f"decode {self.message.name} v{self.version}", "decode")

    def flush(self) -> None:
        """Reads the run."""
        if self.run and self.run[0][0] == "B" and len(self.run) == 1:
            self.line(f"{self.run.pop()[1]} = data[pos]")
            self.line("pos += 1")
        elif self.run:
            letters = "".join(letter for letter, _ in self.run)
            targets = ", ".join(target for _, target in self.run)
            self.line(f"{targets}, = {self.packer(letters, 'unpack_from')}(data, pos)")
            self.line(f"pos += {Packer('>' + letters).size}")
            self.run.clear()

    def struct(self, struct: Struct, cls: type[Any]) -> str:
        """Lines that make one; the name of the variable it is in."""
        made = self.new("o")
        self.names[f"C_{struct.name}"] = cls
        self.line(f"{made} = new(C_{struct.name})")
        tagged = tagged_in(struct, self.version) if self.flexible else []
        present = list(fields_in(struct, self.version))
        for item in struct.fields:
            if item not in present:
                self.line(f"{made}.{item.name} = {self.default(item, self.structs)}")
        for item in present:
            self.field(item, f"{made}.{item.name}")
        if self.flexible:
            self.tags(made, tagged)
        self.flush()
        return made

    def field(self, item: Field, target: str) -> None:
        if item.array:
            self.array(item, target)
        elif item.type in FIXED:
            self.run.append((FIXED[item.type], target))
        elif item.struct is None:
            self.variable(item, target)
        elif self.version in item.nullable:
            # Kafka writes -1 or 1 before a struct that may be null, but 0 or 1 before a tagged one.
            tagged = self.version in item.tagged
            present = self.new("n")
            self.run.append(("B" if tagged else "b", present))
            self.flush()
            with self.block(f"if {present} < {1 if tagged else 0}:"):
                self.line(f"{target} = None")
            with self.block("else:"):
                self.line(f"{target} = {self.struct(item.struct, self.structs[item.type])}")
        else:
            made = self.struct(item.struct, self.structs[item.type])
            self.line(f"{target} = {made}")

    def length(self, item: Field, letter: str, target: str) -> str:
        """Reads a length or count and deals with null; the caller goes on with `else:`."""
        count = self.new("n")
        compact = self.compact(item)
        self.run.append(("B" if compact else letter, count))
        self.flush()
        if compact:
            with self.block(f"if {count} > 127:"):
                self.line(f"{count}, pos = finish_varint(data, pos, {count})")
            self.line(f"{count} -= 1")
        with self.block(f"if {count} < 0:"):
            if self.version in item.nullable:
                self.line(f"{target} = None")
            else:
                self.line(f"raise not_null({item.name!r})")
        return count

    def variable(self, item: Field, target: str, *, element: bool = False) -> None:
        """A string, bytes or records. Elements of arrays are never null."""
        if element:
            item = _element(item)
        count = self.length(item, "h" if item.type == "string" else "i", target)
        stop = self.new("e")
        with self.block("else:"):
            self.line(f"{stop} = pos + {count}")
            too_long = f" or {count} > {STRING_MAX}" if item.type == "string" and self.compact(item) else ""
            with self.block(f"if {stop} > end{too_long}:"):
                self.line(f"raise cut_off({item.name!r}, {count}, end - pos)")
            self.line(f"{target} = {self.slice(item.type, stop)}")
            self.line(f"pos = {stop}")

    def slice(self, base: str, stop: str) -> str:
        if base == "string":
            return f"str(data[pos:{stop}], 'utf-8')" if self.cls._view else f"data[pos:{stop}].decode()"
        if base == "bytes" and self.cls._view:
            return f"bytes(data[pos:{stop}])"
        return f"data[pos:{stop}]"

    def array(self, item: Field, target: str) -> None:
        count = self.length(item, "i", target)
        with self.block("else:"):
            # As in Kafka, a count is at most the bytes that are left, even if elements take none.
            size = max(1, self.least(item, False))
            with self.block(f"if {count}{f' * {size}' if size > 1 else ''} > end - pos:"):
                self.line(f"raise cut_off({item.name!r}, {count}, end - pos)")
            if item.type == "uuid":
                part = "data[i:i + 16]"
                made = f"bytes({part})" if self.cls._view else part
                self.line(f"{target} = [{made} for i in range(pos, pos + 16 * {count}, 16)]")
                self.line(f"pos += 16 * {count}")
            elif item.type in FIXED:
                self.line(f"{target} = [*{self.repeated(FIXED[item.type], 'unpack_from')}[{count}](data, pos)]")
                self.line(f"pos += {count}{f' * {size}' if size > 1 else ''}")
            else:
                self.elements(item, target, count)

    def elements(self, item: Field, target: str, count: str) -> None:
        items = self.new("l")
        self.line(f"{items} = []")
        with self.block(f"for _ in range({count}):"):
            if item.struct is None:
                made = self.new("v")
                self.variable(item, made, element=True)
            else:
                made = self.struct(item.struct, self.structs[item.type])
            self.line(f"{items}.append({made})")
        self.line(f"{target} = {items}")

    def tags(self, made: str, tagged: list[Field]) -> None:
        """The section of tagged fields that ends a struct. Unknown ones are skipped."""
        count, tag, size, stop = (self.new(prefix) for prefix in ("n", "t", "s", "e"))
        self.run.append(("B", count))
        self.flush()
        with self.block(f"if {count}:"):
            if not tagged:
                self.line(f"pos = skip_tags(data, pos, end, {count})")
                return
            with self.block(f"if {count} > 127:"):
                self.line(f"{count}, pos = finish_varint(data, pos, {count})")
            with self.block(f"for _ in range({count}):"):
                self.line(f"{tag}, pos = read_varint(data, pos)")
                self.line(f"{size}, pos = read_varint(data, pos)")
                self.line(f"{stop} = pos + {size}")
                with self.block(f"if {stop} > end:"):
                    self.line(f"raise cut_off('tagged field', {size}, end - pos)")
                keyword = "if"
                for item in tagged:
                    with self.block(f"{keyword} {tag} == {item.tag}:"):
                        self.field(item, f"{made}.{item.name}")
                        self.flush()
                        with self.block(f"if pos != {stop}:"):
                            self.line(f"raise ProtocolError('tagged field {item.name} is not of the size it says')")
                    keyword = "elif"
                with self.block("else:"):
                    self.line(f"pos = {stop}")


class _EncoderSource(_CodecSource):
    """Writes `encode(o) -> parts`."""

    def write(self) -> Any:
        self.names.update(
            varint=uvarint,
            absent_field=absent_field,
            not_null=not_null,
            too_long=too_long,
            bad_uuid=bad_uuid,
        )
        with self.block("def encode(o):"):
            self.line("parts = []")
            self.line("w = parts.append")
            self.struct(self.message.root, "o", "w")
            self.line("return parts")
        return self.compile(f"encode {self.message.name} v{self.version}", "encode")

    def flush(self, write: str) -> None:
        """Writes the run. A varint (letter V) can only be its last item; most fit into one byte."""
        if not self.run:
            return
        varint = self.run.pop()[1] if self.run[-1][0] == "V" else None
        letters = "".join(letter for letter, _ in self.run)
        values = ", ".join(value for letter, value in self.run if letter != "x")
        self.run.clear()
        if varint is None:
            packed = f"{self.packer(letters, 'pack')}({values})" if letters != "x" else "b'\\0'"
            self.line(f"{write}({packed})")
        elif not letters:
            self.line(f"{write}(varint({varint}))")
        else:
            both = f"{values}, {varint}" if values else varint
            with self.block(f"if {varint} < 128:"):
                self.line(f"{write}({self.packer(letters + 'B', 'pack')}({both}))")
            with self.block("else:"):
                self.line(f"{write}({self.packer(letters, 'pack')}({values}))")
                self.line(f"{write}(varint({varint}))")

    def struct(self, struct: Struct, source: str, write: str) -> None:
        """Lines that write the struct that the variable `source` holds."""
        tagged = tagged_in(struct, self.version) if self.flexible else []
        present = list(fields_in(struct, self.version))
        for item in struct.fields:
            if item not in present and item not in tagged and not item.ignorable:
                with self.block(f"if {self.differs(item, f'{source}.{item.name}')}:"):
                    self.line(f"raise absent_field({item.name!r})")
        for item in present:
            self.field(item, f"{source}.{item.name}", write)
        if tagged:
            self.flush(write)
            self.tags(tagged, source, write)
        elif self.flexible:
            self.run.append(("x", ""))
        self.flush(write)

    def differs(self, item: Field, value: str) -> str:
        """A condition: the value is not the default."""
        if item.default is None:
            return f"{value} is not None"
        return f"{value} != {self.default(item, self.structs)}"

    def field(self, item: Field, value: str, write: str) -> None:
        if item.array:
            self.array(item, value, write)
        elif item.type in FIXED:
            if item.type == "uuid":
                with self.block(f"if len({value}) != 16:"):
                    self.line(f"raise bad_uuid({item.name!r})")
            self.run.append((FIXED[item.type], value))
        elif item.struct is None:
            self.variable(item, value, write)
        else:
            inner = self.new("o")
            self.line(f"{inner} = {value}")
            if self.version not in item.nullable:
                self.struct(item.struct, inner, write)
                return
            self.flush(write)
            with self.block(f"if {inner} is None:"):
                null = b"\0" if self.version in item.tagged else b"\xff"
                self.line(f"{write}({null!r})")
            with self.block("else:"):
                self.run.append(("b", "1"))
                self.struct(item.struct, inner, write)

    def length(self, item: Field, letter: str, value: str, count: str) -> None:
        """Appends a length or count to the run: `count` holds it, -1 stands for null."""
        if self.compact(item):
            self.line(f"{count} += 1")
            self.run.append(("V", count))
        else:
            self.run.append((letter, count))

    def variable(self, item: Field, value: str, write: str, *, element: bool = False) -> None:
        if element:
            item = _element(item)
        data, count = self.new("b"), self.new("n")
        self.line(f"{data} = {value}")
        nullable = self.version in item.nullable
        with self.block(f"if {data} is None:"):
            if nullable:
                self.line(f"{data} = b''")
                self.line(f"{count} = -1")
            else:
                self.line(f"raise not_null({item.name!r})")
        with self.block("else:"):
            if item.type == "string":
                self.line(f"{data} = {data}.encode()")
            self.line(f"{count} = len({data})")
            if item.type == "string":
                with self.block(f"if {count} > {STRING_MAX}:"):
                    self.line(f"raise too_long({item.name!r}, {count})")
        self.length(item, "h" if item.type == "string" else "i", value, count)
        self.flush(write)
        self.line(f"{write}({data})")

    def array(self, item: Field, value: str, write: str) -> None:
        items, count = self.new("l"), self.new("n")
        self.line(f"{items} = {value}")
        if self.version in item.nullable:
            self.line(f"{count} = -1 if {items} is None else len({items})")
        else:
            with self.block(f"if {items} is None:"):
                self.line(f"raise not_null({item.name!r})")
            self.line(f"{count} = len({items})")
        self.length(item, "i", value, count)
        self.flush(write)
        with self.block(f"if {items}:"):
            if item.type == "uuid":
                with self.block(f"for i in {items}:"):
                    with self.block("if len(i) != 16:"):
                        self.line(f"raise bad_uuid({item.name!r})")
                    self.line(f"{write}(i)")
            elif item.type in FIXED:
                self.line(f"{write}({self.repeated(FIXED[item.type], 'pack')}[len({items})](*{items}))")
            else:
                inner = self.new("o")
                with self.block(f"for {inner} in {items}:"):
                    if item.struct is None:
                        self.variable(item, inner, write, element=True)
                    else:
                        self.struct(item.struct, inner, write)
                        if not any(fields_in(item.struct, self.version)) and not self.flexible:
                            self.line("pass")

    def tags(self, tagged: list[Field], source: str, write: str) -> None:
        """Tagged fields are written when they are not the default, in the order of their tags, each with its size."""
        parts, count = self.new("p"), self.new("n")
        self.line(f"{parts} = []")
        self.line(f"{count} = 0")
        for item in tagged:
            value, inner = f"{source}.{item.name}", self.new("p")
            with self.block(f"if {self.differs(item, value)}:"):
                self.line(f"{inner} = []")
                self.field(item, value, f"{inner}.append")
                self.flush(f"{inner}.append")
                self.line(f"{inner} = b''.join({inner})")
                self.line(f"{parts} += varint({item.tag}), varint(len({inner})), {inner}")
                self.line(f"{count} += 1")
        self.line(f"{write}(varint({count}))")
        with self.block(f"for i in {parts}:"):
            self.line(f"{write}(i)")


def _element(item: Field) -> Field:
    """The field as one element of its array: not null, no array."""
    return Field(item.name, item.type, False, item.versions, range(0), None, None, range(0), False, item.rigid)
