"""`python -m protocol.schema.stubs` writes `protocol/messages.pyi`: the types of what `protocol.messages` makes."""

from pathlib import Path

from protocol.schema import Field, Message, Struct, load, names

STUBS = Path(__file__).parent.parent / "messages.pyi"

_TYPES = {"bool": "bool", "float64": "float", "string": "str", "bytes": "bytes", "uuid": "bytes", "records": "Buffer"}
_HEAD = '''"""Generated from protocol/schema by `python -m protocol.schema.stubs`."""

from protocol import Buffer
from protocol.codec import ApiMessage, Data
'''


def generate() -> str:
    """The text of the stub file."""
    return "\n\n".join([_HEAD.rstrip(), *("\n".join(_message(load(name))) for name in names())]) + "\n"


def _message(message: Message) -> list[str]:
    lines = [f"class {message.name}(ApiMessage):"]
    for struct in message.structs.values():
        lines += [f"    class {struct.name}(Data):", *_members(message, struct, "        ")]
    return lines + _members(message, message.root, "    ")


def _members(message: Message, struct: Struct, indent: str) -> list[str]:
    if not struct.fields:
        return [f"{indent}def __init__(self) -> None: ..."]
    types = {item.name: _type(message, item) for item in struct.fields}
    attributes = [f"{indent}{name}: {type_}" for name, type_ in types.items()]
    parameters = ", ".join(f"{name}: {type_} = ..." for name, type_ in types.items())
    return [*attributes, f"{indent}def __init__(self, *, {parameters}) -> None: ..."]


def _type(message: Message, item: Field) -> str:
    base = f"{message.name}.{item.type}" if item.struct else _TYPES.get(item.type, "int")
    found = f"list[{base}]" if item.array else base
    return f"{found} | None" if item.nullable or item.type == "records" else found


if __name__ == "__main__":
    STUBS.write_text(generate(), encoding="utf-8")
