"""Batches of idempotent producers that were refused for now, so that none behind them takes their place.

A producer has several batches of a log on their way. When the first is refused because the log cannot take it (it is
about to open or to move, or there is no space) and the next one finds it open, that one would be the first that the log
knows of the producer; and the first may have any sequence, because logs forget producers in time. Sent again, the
refused batch would be out of sequence for ever, and its records would come after those that were sent later. Apache
Kafka has the same gap; it is narrower there, because no request waits for a log.

Each connection remembers what it was refused, and what lies behind is refused as well until that has come again.
"""

from protocol import Buffer
from protocol.fast import ProducePart
from protocol.records import HEADER_SIZE, BatchHeader, parse_header

REFUSED_MAX = 1000
"""Per connection; the oldest goes first."""


class RefusedBatches:
    """Of one connection: the lowest sequence refused, by partition, producer id and epoch."""

    __slots__ = ("_lowest",)

    def __init__(self) -> None:
        self._lowest: dict[tuple[object, int, int, int], int] = {}

    def __bool__(self) -> bool:
        return bool(self._lowest)

    def note(self, part: ProducePart, buf: Buffer) -> None:
        """The partition's batch was refused and will be sent again."""
        topic, partition, start, stop = part
        if not 0 <= start <= stop - HEADER_SIZE:
            return
        header = parse_header(buf, start)
        if header.producer_id < 0 or header.base_sequence < 0:
            return
        key = (topic, partition, header.producer_id, header.producer_epoch)
        self._lowest[key] = min(self._lowest.get(key, header.base_sequence), header.base_sequence)
        if len(self._lowest) > REFUSED_MAX:
            del self._lowest[next(iter(self._lowest))]

    def precede(self, part: ProducePart, header: BatchHeader) -> bool:
        """Whether a batch of the same producer that comes before this one was refused."""
        key = (part[0], part[1], header.producer_id, header.producer_epoch)
        return header.base_sequence > self._lowest.get(key, header.base_sequence)

    def came(self, part: ProducePart, header: BatchHeader) -> None:
        """This one was appended, or was there already."""
        if self._lowest:
            key = (part[0], part[1], header.producer_id, header.producer_epoch)
            if header.base_sequence <= self._lowest.get(key, -1):
                del self._lowest[key]
