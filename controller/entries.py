"""Entries of the metadata log and the frame of its snapshots, as bytes.

An entry is `TLME`, a format byte, the CRC-32C of what follows, and one msgpack list {cluster id, position, SHA-256 of
the previous entry, controller epoch, nonce, wall time, [command id, answer]..., fact...}. The hash of an entry is
that of all its bytes: entries form a chain. A snapshot is framed the same way (`TLMS`).
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgpack
from crc32c import crc32c

from controller.facts import Fact, decode_fact, encode_fact

ENTRY_MAGIC = b"TLME"
SNAPSHOT_MAGIC = b"TLMS"
FORMAT = 1
HEAD_BYTES = 9
FIRST_HASH = bytes(32)
"""What the first entry names as its predecessor's hash."""


class CorruptMetadata(ValueError):
    """Bytes of the metadata log or of a snapshot are not what was written."""


class NewerFormat(ValueError):
    """Written by a newer version in a format that this one does not read."""


class RememberedAnswer(NamedTuple):
    """A command that the entry decided, with its encoded answer (`[tag, fields...]`)."""

    command_id: bytes
    answer: Any


class Entry(NamedTuple):
    """One entry. `nonce` (16 random bytes) tells two writers of equal facts apart."""

    cluster_id: str
    position: int
    previous: bytes
    controller_epoch: int
    nonce: bytes
    wall_ms: int
    answers: tuple[RememberedAnswer, ...]
    facts: tuple[Fact, ...]


def hash_of(data: bytes) -> bytes:
    """The hash that the next entry names."""
    return hashlib.sha256(data).digest()


def frame(magic: bytes, body: Sequence[bytes]) -> list[bytes]:
    """Magic, format and checksum in front of a body that stays in its pieces."""
    checksum = 0
    for piece in body:
        checksum = crc32c(piece, checksum)
    return [magic + bytes([FORMAT]) + checksum.to_bytes(4, "big"), *body]


def unframe(magic: bytes, data: bytes) -> memoryview:
    """The body. `CorruptMetadata`, `NewerFormat`."""
    if len(data) < HEAD_BYTES or data[:4] != magic:
        raise CorruptMetadata(f"does not begin with {magic.decode()}")
    if data[4] != FORMAT:
        raise NewerFormat(f"format {data[4]}, this version reads {FORMAT}: upgrade")
    body = memoryview(data)[HEAD_BYTES:]
    if crc32c(body) != int.from_bytes(data[5:HEAD_BYTES], "big"):
        raise CorruptMetadata("checksum does not match")
    return body


def encode_entry(entry: Entry) -> bytes:
    """The bytes of an entry."""
    fields = [*entry[:6], entry.answers, [encode_fact(fact) for fact in entry.facts]]
    return b"".join(frame(ENTRY_MAGIC, [msgpack.packb(fields)]))


def decode_entry(data: bytes) -> Entry:
    """The entry of its bytes. `CorruptMetadata`, `NewerFormat`, `facts.UnknownFact`."""
    body = unframe(ENTRY_MAGIC, data)
    try:
        fields = msgpack.unpackb(body, use_list=False, strict_map_key=False)
        cluster_id, position, previous, epoch, nonce, wall_ms, answers, facts = fields
    except (ValueError, TypeError) as error:
        raise CorruptMetadata(f"entry cannot be read: {error!r}") from error
    return Entry(
        cluster_id,
        position,
        previous,
        epoch,
        nonce,
        wall_ms,
        tuple(RememberedAnswer(*answer) for answer in answers),
        tuple(decode_fact(fact) for fact in facts),
    )


class SnapshotHead(NamedTuple):
    """What a snapshot says of itself before the state: whose, after which entry, and that entry's hash."""

    cluster_id: str
    position: int
    entry_hash: bytes


def frame_snapshot(head: SnapshotHead, chunks: Iterable[bytes]) -> list[bytes]:
    """The pieces of a snapshot object; `chunks` is the encoded state."""
    return frame(SNAPSHOT_MAGIC, [msgpack.packb(list(head)), *chunks])


def unframe_snapshot(data: bytes) -> tuple[SnapshotHead, memoryview]:
    """The head and the encoded state. `CorruptMetadata`, `NewerFormat`."""
    body = unframe(SNAPSHOT_MAGIC, data)
    unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=0)
    unpacker.feed(body[:4096])
    try:
        head = SnapshotHead(*next(unpacker))
    except (ValueError, TypeError, StopIteration) as error:
        raise CorruptMetadata(f"snapshot head cannot be read: {error!r}") from error
    return head, body[unpacker.tell() :]
