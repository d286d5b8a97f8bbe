"""The contract of every metadata log engine: one suite, which the tests of each engine subclass."""

import asyncio

import pytest

from controller.entries import CorruptMetadata, hash_of
from controller.metadata_log import BelowBoundary, MetadataLog

HASH = b"h" * 32


class LogContract:
    """Each engine subclasses this; `logs` are two processes' views of one log."""

    @pytest.fixture
    def logs(self) -> tuple[MetadataLog, MetadataLog]:
        raise NotImplementedError

    async def test_one_writer_wins_and_the_other_is_told_who(self, logs: tuple[MetadataLog, MetadataLog]) -> None:
        outcomes = await asyncio.gather(*[log.append(1, b"of %d" % i) for i, log in enumerate(logs * 8)])
        assert len(set(outcomes)) == 1 and outcomes[0].startswith(b"of ")
        assert await logs[1].read_from(1, 10) == [outcomes[0]]

    async def test_the_same_bytes_again_are_no_second_entry(self, logs: tuple[MetadataLog, MetadataLog]) -> None:
        assert await logs[0].append(1, b"one") == b"one"
        assert await logs[0].append(1, b"one") == b"one"
        assert await logs[1].append(1, b"other") == b"one"

    async def test_reading_in_order_up_to_the_end(self, logs: tuple[MetadataLog, MetadataLog]) -> None:
        entries = [b"entry %d" % position for position in range(1, 101)]
        for position, data in enumerate(entries, 1):
            await logs[0].append(position, data)
        assert await logs[1].read_from(1, 1000) == entries
        assert await logs[1].read_from(50, 7) == entries[49:56]
        assert await logs[1].read_from(101, 10) == []

    async def test_snapshots(self, logs: tuple[MetadataLog, MetadataLog]) -> None:
        assert await logs[0].newest_snapshot() is None
        await logs[0].write_snapshot(5, HASH, [b"old"])
        await logs[0].write_snapshot(9, HASH, [b"st", b"ate"])
        await logs[1].write_snapshot(9, HASH, [b"state"])
        newest = await logs[1].newest_snapshot()
        assert newest is not None
        assert (newest.position, newest.entry_hash, bytes(newest.state)) == (9, HASH, b"state")

    async def test_below_the_boundary_nothing_counts(self, logs: tuple[MetadataLog, MetadataLog]) -> None:
        first, second = logs
        for position in range(1, 11):
            await first.append(position, b"entry %d" % position)
        await first.write_snapshot(10, HASH, [b"state"])
        assert await first.advance_boundary(6) == 6
        assert await second.advance_boundary(4) == 6, "never back"
        assert await first.trim() == 6
        for position in (1, 6):
            with pytest.raises(BelowBoundary):
                await second.read_from(position, 5)
            with pytest.raises(BelowBoundary):
                await second.append(position, b"late")
        assert await second.read_from(7, 2) == [b"entry 7", b"entry 8"]
        assert await first.trim() in (0, 2), "what paused writers left there"

    async def test_racing_boundaries_end_at_the_highest(self, logs: tuple[MetadataLog, MetadataLog]) -> None:
        await asyncio.gather(*[log.advance_boundary(10 + 5 * i) for i, log in enumerate(logs * 4)])
        assert await logs[0].advance_boundary(0) == 45

    async def test_what_was_applied_is_no_obstacle(self, logs: tuple[MetadataLog, MetadataLog]) -> None:
        """A process tells the engine how far it is; the log that made it so goes on."""
        first, second = logs
        for position in range(1, 4):
            data = b"entry %d" % position
            assert await first.append(position, data) == data
            first.applied(position, hash_of(data))
        assert await second.read_from(1, 2) == [b"entry 1", b"entry 2"]
        second.applied(2, hash_of(b"entry 2"))
        assert await second.append(3, b"other") == b"entry 3", "lost, and told by whom"
        assert await second.read_from(3, 5) == [b"entry 3"]
        await first.write_snapshot(3, hash_of(b"entry 3"), [b"state"])
        await first.advance_boundary(3)
        await first.trim()
        with pytest.raises(BelowBoundary):
            await second.read_from(3, 1)
        second.applied(3, hash_of(b"entry 3"))
        assert await second.append(4, b"entry 4") == b"entry 4", "its predecessor is gone, and was seen"

    async def test_long_entries_and_states(self, logs: tuple[MetadataLog, MetadataLog]) -> None:
        entries = [bytes([i]) * (1 << 20) for i in range(5)]
        for position, data in enumerate(entries, 1):
            assert await logs[0].append(position, data) == data
        assert await logs[1].read_from(1, 100) == entries
        state = [bytes([i]) * (3 << 20) for i in range(5)]
        await logs[0].write_snapshot(5, HASH, state)
        newest = await logs[1].newest_snapshot()
        assert newest is not None and bytes(newest.state) == b"".join(state)

    async def test_of_many_snapshots_two_stay(self, logs: tuple[MetadataLog, MetadataLog]) -> None:
        for position in range(1, 6):
            await logs[0].write_snapshot(position, HASH, [b"state %d" % position])
        assert await logs[1].trim() == 3
        newest = await logs[1].newest_snapshot()
        assert newest is not None and (newest.position, bytes(newest.state)) == (5, b"state 5")

    async def test_a_snapshot_of_another_history_is_none(self, logs: tuple[MetadataLog, MetadataLog]) -> None:
        await logs[0].write_snapshot(3, b"other hash".ljust(32), [b"state"])
        with pytest.raises(CorruptMetadata):
            await logs[1].write_snapshot(3, HASH, [b"state"])
