"""What a consumer of committed records makes of a Fetch answer."""

from typing import Any

from protocol.records import Record, iterate_batches, parse_end_txn_marker, records

_SIZE_MAX = 1 << 24


def committed_records(part: Any, offset: int) -> tuple[list[Record], int]:
    """The records of a partition's answer, from `offset` on, that it gives to its user, and where it goes on.

    As Kafka's `CompletedFetch`: a producer's batches are left out from the first offset of its aborted transaction on
    to the marker.
    """
    waiting = sorted((each.first_offset, each.producer_id) for each in part.aborted_transactions or ())
    aborted: set[int] = set()
    found: list[Record] = []
    upper = offset
    data = memoryview(part.records or b"")
    for at, header in iterate_batches(data):
        while waiting and waiting[0][0] <= header.last_offset:
            aborted.add(waiting.pop(0)[1])
        inside = list(records(data[at : at + header.size], max_size=_SIZE_MAX))
        if header.is_control:
            marker = parse_end_txn_marker(inside[0]) if inside else None
            if marker is not None and not marker.commit:
                aborted.discard(header.producer_id)
        elif not (header.is_transactional and header.producer_id in aborted):
            found += [record for record in inside if record.offset >= offset]
        upper = header.next_offset
    return found, upper
