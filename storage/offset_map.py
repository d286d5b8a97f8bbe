"""Key -> the last offset at which it was seen, in a bounded amount of memory: what log compaction goes by.

Keys are kept as 128-bit hashes (as Kafka's `SkimpyOffsetMap`, which takes MD5): 24 bytes each in three arrays, open
addressing. The arrays grow as they fill, up to the bound, and are given back with the map.
"""

from array import array
from collections.abc import Iterator

from xxhash import xxh3_128_intdigest

ENTRY_BYTES = 24
_LOAD = 0.8
"""How full the arrays may be: beyond it searches become long."""
_SLOTS_MIN = 1 << 10
_GROWTH = 4
_LOW = (1 << 64) - 1
_FREE = -1
_STEP = 512
"""Entries that are moved in one step while the arrays grow."""


class OffsetMap:
    """`latest`: the last offset that was looked at: the map knows the last offset of every key at or below it, back to
    where it was begun."""

    __slots__ = (
        "_entries_max",
        "_high",
        "_low",
        "_offsets",
        "_room",
        "_seed",
        "_slots",
        "_slots_max",
        "count",
        "latest",
    )

    def __init__(self, bytes_max: int, latest: int, *, seed: int = 0, expected: int = 0) -> None:
        """`bytes_max`: of memory, also while the map grows. `latest`: the offset before the first that will be added.

        `seed`: of the hash; with one that nobody knows nobody can make keys that collide. `expected`: so many keys.
        """
        growing = ENTRY_BYTES + ENTRY_BYTES // _GROWTH
        self._slots_max = max(bytes_max // growing, 2)
        self._entries_max = max(int(self._slots_max * _LOAD), 1)
        self._seed = seed
        self.count = 0
        self.latest = latest
        self._make(max(_SLOTS_MIN, int(expected / _LOAD)))

    def _make(self, slots: int) -> None:
        """Arrays of so many slots: all there may be, if they could not grow by `_GROWTH` within the bound."""
        if slots > self._slots_max // _GROWTH:
            slots = self._slots_max
        self._slots = slots
        self._room = int(slots * _LOAD) if slots < self._slots_max else self._entries_max
        self._high = array("Q", bytes(8)) * slots
        self._low = array("Q", bytes(8)) * slots
        self._offsets = array("q", [_FREE]) * slots

    @property
    def memory_bytes(self) -> int:
        """Of the arrays as they are now."""
        return ENTRY_BYTES * self._slots

    @property
    def may_grow(self) -> bool:
        """Whether the bound allows for more room."""
        return self._slots < self._slots_max

    def put(self, key: bytes, offset: int) -> bool:
        """Remembers that `key` was seen at `offset`, above all that was added before; False if there is no room: then
        nothing happened."""
        digest = xxh3_128_intdigest(key, self._seed)
        high, low = digest >> 64, digest & _LOW
        slot = self._find(high, low)
        offsets = self._offsets
        if offsets[slot] == _FREE:
            if self.count >= self._room:
                return False
            self._high[slot], self._low[slot] = high, low
            self.count += 1
        offsets[slot] = offset
        self.latest = offset
        return True

    def get(self, key: bytes) -> int:
        """The last offset of the key, -1 if it was not seen."""
        digest = xxh3_128_intdigest(key, self._seed)
        return self._offsets[self._find(digest >> 64, digest & _LOW)]

    def _find(self, high: int, low: int) -> int:
        """The slot of the hash, or the free one where it belongs."""
        slots, highs, lows, offsets = self._slots, self._high, self._low, self._offsets
        slot = low % slots
        while offsets[slot] != _FREE and (lows[slot] != low or highs[slot] != high):
            slot += 1
            if slot == slots:
                slot = 0
        return slot

    def grow(self) -> Iterator[None]:
        """Makes room, in steps; nothing else may be asked of the map between them."""
        highs, lows, offsets = self._high, self._low, self._offsets
        self._make(self._slots * _GROWTH)
        yield
        for number, (high, low, offset) in enumerate(zip(highs, lows, offsets)):
            if offset != _FREE:
                slot = self._find(high, low)
                self._high[slot], self._low[slot], self._offsets[slot] = high, low, offset
            if number % _STEP == 0:
                yield
