"""The form of a snapshot: a stream of msgpack lists `[section, rows]`, the first being `[0, [format, ...]]`.

Sections are numbered for ever; an unknown one stops the reader, so what only a higher format level can bring about has
sections of its own, and an empty section is not written. Rows are positional.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import msgpack

from controller import facts as f
from controller.codec import Malformed
from controller.entries import NewerFormat

SNAPSHOT_FORMAT = 1
ROWS_PER_CHUNK = 500

Load = Callable[[tuple[Any, ...]], object]
"""Takes one row of a section."""


def encode_rows(head: Sequence[Any], sections: Mapping[int, Iterable[list[Any]]]) -> Iterator[bytes]:
    """`head`: what section 0 holds after the format, the fifth being the format level."""
    pack = msgpack.Packer().pack
    yield pack([0, [SNAPSHOT_FORMAT, *head]])
    for section, rows in sections.items():
        left = iter(rows)
        while chunk := list(islice(left, ROWS_PER_CHUNK)):
            yield pack([section, chunk])


def decode_rows(data: "Iterable[bytes] | bytes", begin: Callable[..., Mapping[int, Load]]) -> None:
    """`begin(*head)` gives who takes the rows of each section. `codec.Malformed`, `entries.NewerFormat`."""
    unpacker = msgpack.Unpacker(use_list=False, strict_map_key=False, max_buffer_size=0)
    for chunk in (data,) if isinstance(data, bytes) else data:
        unpacker.feed(chunk)
    try:
        section, head = next(unpacker)
        if section != 0:
            raise Malformed(f"a snapshot begins with section 0, not {section}")
        if head[0] != SNAPSHOT_FORMAT:
            raise NewerFormat(f"snapshot of format {head[0]}, this version reads {SNAPSHOT_FORMAT}: upgrade")
        if head[5] > f.FORMAT_LEVEL:
            raise NewerFormat(f"snapshot of format level {head[5]}, this version knows {f.FORMAT_LEVEL}: upgrade")
        loaders = begin(*head[1:])
        for section, rows in unpacker:
            load = loaders.get(section)
            if load is None:
                raise NewerFormat(f"snapshot section {section} is not known to this version: upgrade")
            for row in rows:
                load(row)
    except NewerFormat:
        raise
    except (ValueError, TypeError, KeyError, IndexError, StopIteration) as error:
        raise Malformed(f"snapshot cannot be read: {error!r}") from error
