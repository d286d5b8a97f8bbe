"""Python source under construction: what the writers of codecs build with."""

from struct import Struct as Packer
from typing import Any

from protocol.schema import Field


class Block:
    """`with source.block("if x:")`: the lines inside are indented."""

    def __init__(self, source: "Source") -> None:
        self._source = source

    def __enter__(self) -> None:
        self._source.depth += 1

    def __exit__(self, *_: object) -> None:
        self._source.depth -= 1


class Source:
    """Python source under construction, and the names it uses."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[str, Any] = {}
        self.depth = 0
        self._count = 0

    def line(self, text: str) -> None:
        self.lines.append(" " * self.depth + text)

    def block(self, text: str) -> Block:
        self.line(text)
        return Block(self)

    def new(self, prefix: str) -> str:
        """A variable that nobody else has."""
        self._count += 1
        return f"{prefix}{self._count}"

    def packer(self, letters: str, method: str) -> str:
        """The name of a bound method of `struct.Struct(letters)`."""
        name = f"{method}_{letters.replace('?', 'Z')}"
        self.names.setdefault(name, getattr(Packer(">" + letters), method))
        return name

    def repeated(self, letter: str, method: str) -> str:
        """The name of a mapping: count -> bound method of a `struct.Struct` of so many."""
        name = f"{method}_many_{letter}"
        self.names.setdefault(name, Repeated(letter, method))
        return name

    def default(self, item: Field, structs: dict[str, type[Any]]) -> str:
        """An expression for the value of a field that is not there."""
        if item.struct is not None and not item.array and item.default is not None:
            self.names[f"C_{item.type}"] = structs[item.type]
            return f"C_{item.type}()"
        return repr(item.default)

    def compile(self, title: str, function: str) -> Any:
        exec(compile("\n".join(self.lines), f"<{title}>", "exec"), self.names)
        return self.names[function]


class Repeated(dict[int, Any]):
    """Makes the methods that `Source.repeated` promises; keeps those of small counts."""

    def __init__(self, letter: str, method: str) -> None:
        self._letter, self._method = letter, method

    def __missing__(self, count: int) -> Any:
        made = getattr(Packer(f">{count}{self._letter}"), self._method)
        if count <= 64:
            self[count] = made
        return made
