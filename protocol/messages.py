"""Every message as a class: `from protocol import messages as m; m.MetadataRequest(topics=None).encode(12)`.

Attributes are Kafka's field names in snake case, nested structs are attributes of the message's class under Kafka's own
names. A class is built when it is first asked for, the codec of a version when it is first used. Types are in
`messages.pyi`, which `python -m protocol.schema.stubs` writes.
"""

from typing import Any

from protocol import codec, schema


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in schema.names():
        raise AttributeError(f"there is no message {name}")
    # Whoever comes first wins, so that a message has one class whatever the threads.
    return globals().setdefault(name, codec.build(schema.load(name)))


def __dir__() -> list[str]:
    return schema.names()
