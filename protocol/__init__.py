"""Bytes <-> messages of the Kafka protocol. Sans-I/O: no asyncio, socket, clock or randomness in here."""

from typing import TypeAlias

#: What bytes may arrive in and be sent from. Positions are always counted in bytes.
Buffer: TypeAlias = bytes | bytearray | memoryview

__all__ = ["Buffer"]
