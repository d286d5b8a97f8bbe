import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import storage.uploader
from protocol.errors import ErrorCode, KafkaError
from storage.object_store import Denied, OutcomeUnknown, PreconditionFailed, Unavailable
from storage.seal import (
    CommitAnswer,
    CommitSeal,
    CommittedThrough,
    CorruptSegment,
    RangeRow,
    Recovery,
    SealedLog,
    Verdict,
)
from storage.segment import describe_segment, encode_segment, read_index
from storage.uploader import Uploader, UploaderStopped, plan_objects
from tests.storage.sealed import WRITER, FixedClock, ScriptedStore, batches, seal, writer

FENCED = KafkaError(ErrorCode.STALE_BROKER_EPOCH, "the incarnation was ended")


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.uploader, "BACKOFF_MS_FIRST", 1)
    monkeypatch.setattr(storage.uploader, "BACKOFF_MS_MAX", 2)


class Controller:
    """Commits as the real one does: next seal only, a repeat gets the first answer. `script`: as in ScriptedStore."""

    def __init__(self) -> None:
        self.asked: list[CommitSeal] = []
        self.committed: dict[int, tuple[CommitSeal, CommitAnswer]] = {}
        self.refuse: set[int] = set()
        self.script: list[object] = []

    async def commit(self, command: CommitSeal) -> CommitAnswer:
        self.asked.append(command)
        fault = self.script.pop(0) if self.script else None
        await asyncio.sleep(0)
        if isinstance(fault, Exception):
            raise fault
        if command.seal not in self.committed:
            assert command.seal == len(self.committed) + 1, "commits come strictly in order"
            log_ids = [range_.log_id for object_ in command.objects for range_ in object_.ranges]
            refused = tuple(sorted(self.refuse & set(log_ids)))
            self.committed[command.seal] = command, CommitAnswer(refused, 100 + command.seal)
        first, answer = self.committed[command.seal]
        assert first == command
        if isinstance(fault, tuple):
            raise fault[1]
        return answer


@asynccontextmanager
async def uploading(store: ScriptedStore, controller: Controller, **settings: int) -> AsyncIterator[Uploader]:
    async with asyncio.TaskGroup() as tasks:
        yield Uploader(store, WRITER, controller.commit, tasks, FixedClock(), **settings)


def sized(log_id: int, size: int) -> SealedLog:
    return SealedLog(log_id, 0, 0, 1, [], 0, 1, b"", [], size)


# Which objects a seal becomes


def plan_of(*sizes: int) -> list[list[int]]:
    logs = [sized(log_id, size) for log_id, size in enumerate(sizes)][::-1]
    return [[log.log_id for log in logs] for logs in plan_objects(logs, own_object_bytes=10, object_bytes_max=16)]


def test_busy_logs_get_an_object_of_their_own_and_the_rest_share() -> None:
    assert plan_of() == []
    assert plan_of(1, 2, 3) == [[0, 1, 2]]
    assert plan_of(1, 10, 3, 500) == [[1], [3], [0, 2]]
    assert plan_of(9, 7, 1, 9) == [[0, 1], [2, 3]]
    assert plan_of(8, 9, 9, 9) == [[0], [1], [2], [3]]


@given(st.lists(st.integers(0, 30)))
def test_every_log_is_in_one_object(sizes: list[int]) -> None:
    objects = plan_of(*sizes)
    assert sorted(log_id for log_ids in objects for log_id in log_ids) == list(range(len(sizes)))
    for log_ids in objects:
        total = sum(sizes[log_id] for log_id in log_ids)
        assert len(log_ids) == 1 or (total <= 16 and max(sizes[log_id] for log_id in log_ids) < 10)


# The usual way


async def test_a_seal_is_stored_committed_and_told() -> None:
    store, controller = ScriptedStore(), Controller()
    controller.refuse = {2}
    logs = [seal(1, batches(5, [1, 2])), seal(2, batches(0, [3])), seal(3, batches(7, [1] * 50))]
    through = [CommittedThrough(b"w" * 16, 9)]
    async with uploading(store, controller, own_object_bytes=2000) as uploader:
        verdict = await uploader.submit(logs, through, Recovery(b"r" * 16, 4))
        assert (uploader.in_flight, uploader.in_flight_bytes, uploader.last_decided) == (0, 0, 1)
        assert uploader.objects_put == 2
    [command] = controller.asked
    assert command.command_id == (0xABCD).to_bytes(8, "big") + (1).to_bytes(8, "big")
    assert (command.node_id, command.incarnation, command.seal) == (1, 0xABCD, 1)
    assert command.committed_through == tuple(through) and command.recovery == Recovery(b"r" * 16, 4)
    assert [object_.key.rpartition("/")[2] for object_ in command.objects] == ["1-0", "1-1"]
    alone, shared = command.objects
    assert [range_.log_id for range_ in alone.ranges] == [3] and [range_.log_id for range_ in shared.ranges] == [1, 2]
    for object_ in command.objects:
        assert (await describe_segment(store, object_.key)).problems == ()
        index = await read_index(store, object_.key, object_.size)
        assert tuple(index.log(log_id).range for log_id in index.log_ids) == object_.ranges
    assert verdict == Verdict(
        1,
        (RangeRow(alone.key, alone.size, alone.ranges[0]), RangeRow(shared.key, shared.size, shared.ranges[0])),
        frozenset({2}),
        101,
    )


async def test_a_seal_without_logs_is_committed_too() -> None:
    store, controller = ScriptedStore(), Controller()
    async with uploading(store, controller) as uploader:
        verdict = await uploader.submit([], [CommittedThrough(b"w" * 16, 9)])
    assert verdict == Verdict(1, (), frozenset(), 101) and not store.calls


async def test_uploads_overlap_and_commits_keep_their_order() -> None:
    store, controller = ScriptedStore(), Controller()
    first, second = asyncio.Event(), asyncio.Event()
    store.script["put_if_absent"] = [first, second]
    async with uploading(store, controller, parallel=3) as uploader:
        verdicts = [uploader.submit([seal(1, batches(at, [1]))]) for at in range(5)]
        assert (uploader.last_seal, uploader.in_flight, uploader.in_flight_bytes) == (5, 5, 5 * 78)
        await asyncio.sleep(0.01)
        assert store.running_max == 3
        assert uploader.objects_put == 3 and controller.asked == []
        second.set()
        await asyncio.sleep(0.01)
        assert uploader.objects_put == 4 and controller.asked == []
        assert not any(verdict.done() for verdict in verdicts)
        first.set()
        assert [(await verdict).seal for verdict in verdicts] == [1, 2, 3, 4, 5]
    assert [command.seal for command in controller.asked] == [1, 2, 3, 4, 5]


async def test_cancelling_a_waiter_stops_nothing() -> None:
    store, controller = ScriptedStore(), Controller()
    async with uploading(store, controller) as uploader:
        uploader.submit([seal(1, batches(0, [1]))]).cancel()
        assert (await uploader.submit([seal(1, batches(1, [1]))])).seal == 2
    assert list(controller.committed) == [1, 2]


# Trouble


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["unknown", "unavailable", "denied", "applied", "fine"]), max_size=12))
def test_every_seal_is_stored_once_whatever_the_store_answers(faults: list[str]) -> None:
    async def attempt() -> None:
        store, controller = ScriptedStore(), Controller()
        answers: dict[str, object] = {
            "unknown": OutcomeUnknown("time-out"),
            "unavailable": Unavailable("503"),
            "denied": Denied("expired token"),
            "applied": ("after", OutcomeUnknown("cut off")),
            "fine": None,
        }
        store.script["put_if_absent"] = [answers[fault] for fault in faults]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(storage.uploader, "BACKOFF_MS_FIRST", 0)
            patch.setattr(storage.uploader, "BACKOFF_MS_MAX", 0)
            async with uploading(store, controller, parallel=2) as uploader:
                verdicts = [uploader.submit([seal(1, batches(at, [1]))]) for at in range(4)]
                for number, verdict in enumerate(verdicts, 1):
                    [row] = (await verdict).committed
                    expected = encode_segment(writer(number), [seal(1, batches(number - 1, [1]))])
                    assert (await store.get(row.key)).data == b"".join(expected.parts)
                assert uploader.away_since is None

    asyncio.run(attempt())


async def test_a_store_that_is_away_is_tried_for_ever_and_told_of() -> None:
    store, controller = ScriptedStore(), Controller()
    store.script["put_if_absent"] = [Unavailable("no route")] * 30
    async with uploading(store, controller) as uploader:
        verdict = uploader.submit([seal(1, batches(0, [1]))])
        while uploader.away_since is None:
            await asyncio.sleep(0.001)
        assert uploader.away_since == FixedClock().now_ms() and not verdict.done()
        await verdict
        assert uploader.away_since is None and uploader.put_retries == 30


async def test_the_same_bytes_are_sent_until_it_is_known_that_they_arrived() -> None:
    class Watching(ScriptedStore):
        async def put_if_absent(self, key, body):
            seen.append(b"".join(body))
            return await super().put_if_absent(key, body)

    seen: list[bytes] = []
    store, controller = Watching(), Controller()
    # Not applied; applied but unknown; refused as existing while the look-up fails; refused and seen.
    store.script["put_if_absent"] = [OutcomeUnknown("?"), ("after", OutcomeUnknown("?"))]
    store.script["head"] = [Unavailable("?")]
    async with uploading(store, controller) as uploader:
        verdict = await uploader.submit([seal(1, batches(0, [1]))])
        assert len(verdict.committed) == 1 and uploader.put_retries == 3
    assert len(seen) == 4 and len(set(seen)) == 1


async def test_while_the_store_is_away_one_upload_tries_for_all() -> None:
    class Counting(ScriptedStore):
        trying = most = 0

        async def put_if_absent(self, key, body):
            self.trying += 1
            self.most = max(self.most, self.trying)
            try:
                await asyncio.sleep(0.001)
                return await super().put_if_absent(key, body)
            finally:
                self.trying -= 1

    store, controller = Counting(), Controller()
    store.script["put_if_absent"] = [Unavailable("no route")] * 40
    async with uploading(store, controller, parallel=4) as uploader:
        verdicts = [uploader.submit([seal(1, batches(at, [1]))]) for at in range(6)]
        while uploader.put_retries < 8:
            await asyncio.sleep(0.001)
        assert store.most == 4
        store.most = 0
        while uploader.put_retries < 36:
            await asyncio.sleep(0.001)
        assert store.most == 1, "the others hold nothing meanwhile"
        await asyncio.gather(*verdicts)
        assert uploader.objects_put == 6


async def test_an_attempt_that_is_still_arriving_is_no_proof() -> None:
    store, controller = ScriptedStore(), Controller()
    store.script["put_if_absent"] = [PreconditionFailed("a conflict with an attempt of our own")]
    async with uploading(store, controller) as uploader:
        assert (await uploader.submit([seal(1, batches(0, [1]))])).seal == 1
        assert uploader.put_retries == 1


@pytest.mark.parametrize("same_size", [True, False])
async def test_other_bytes_under_our_key_stop_this_seal_and_all_after_it(same_size: bool) -> None:
    store, controller = ScriptedStore(), Controller()
    segment = encode_segment(writer(2), [seal(1, batches(1, [1]))])
    other = b"".join(segment.parts)
    store.damage(segment.key, other[:-1] + b"x" if same_size else other + b"x")
    async with uploading(store, controller) as uploader:
        verdicts = [uploader.submit([seal(1, batches(at, [1]))]) for at in range(4)]
        assert (await verdicts[0]).seal == 1
        with pytest.raises(CorruptSegment, match="other bytes lie under our key"):
            await verdicts[1]
        for verdict in verdicts[2:]:
            with pytest.raises(UploaderStopped, match="cannot follow"):
                await verdict
        with pytest.raises(UploaderStopped):
            await uploader.submit([seal(1, batches(9, [1]))])
        assert (uploader.in_flight, uploader.in_flight_bytes) == (0, 0)
    assert [command.seal for command in controller.asked] == [1]


async def test_an_unknown_commit_is_asked_again_with_the_same_command() -> None:
    store, controller = ScriptedStore(), Controller()
    controller.script = [
        TimeoutError("no answer"),
        ("after", ConnectionResetError("answer lost")),
        OutcomeUnknown("metadata log"),
        KafkaError(ErrorCode.NOT_CONTROLLER),
    ]
    async with uploading(store, controller) as uploader:
        verdicts = [uploader.submit([seal(1, batches(at, [1]))]) for at in range(2)]
        while uploader.controller_away_since is None:
            await asyncio.sleep(0.0005)
        assert [(await verdict).position for verdict in verdicts] == [101, 102]
        assert uploader.commit_retries == 4 and uploader.controller_away_since is None
    assert [command.seal for command in controller.asked] == [1, 1, 1, 1, 1, 2]
    assert len({command.command_id for command in controller.asked[:5]}) == 1


async def test_an_ended_incarnation_commits_nothing_more() -> None:
    store, controller = ScriptedStore(), Controller()
    controller.script = [None, FENCED]
    async with uploading(store, controller) as uploader:
        verdicts = [uploader.submit([seal(1, batches(at, [1]))]) for at in range(3)]
        assert (await verdicts[0]).seal == 1
        with pytest.raises(KafkaError, match="was ended"):
            await verdicts[1]
        with pytest.raises(UploaderStopped, match="was ended"):
            await verdicts[2]
    assert [command.seal for command in controller.asked] == [1, 2]


async def test_waiting_for_a_store_ends_with_the_uploader() -> None:
    store, controller = ScriptedStore(), Controller()
    controller.script = [FENCED]
    store.script["put_if_absent"] = [None] + [Unavailable("away")] * 10_000
    async with uploading(store, controller, parallel=1) as uploader:
        verdicts = [uploader.submit([seal(1, batches(at, [1]))]) for at in range(2)]
        with pytest.raises(KafkaError):
            await verdicts[0]
        with pytest.raises(UploaderStopped):
            await verdicts[1]


async def test_an_owner_who_gives_up_cancels_everything() -> None:
    store, controller = ScriptedStore(), Controller()
    store.script["put_if_absent"] = [asyncio.Event(), asyncio.Event()]

    async def own() -> None:
        async with uploading(store, controller) as uploader:
            waiting.extend(uploader.submit([seal(1, batches(at, [1]))]) for at in range(3))
            await asyncio.Event().wait()

    waiting: list[asyncio.Future[Verdict]] = []
    async with asyncio.TaskGroup() as tasks:
        owner = tasks.create_task(own())
        await asyncio.sleep(0.005)
        owner.cancel()
    assert all(verdict.cancelled() for verdict in waiting) and controller.asked == []


async def test_a_pace_limit_spreads_the_uploads() -> None:
    store, controller = ScriptedStore(), Controller()
    loop = asyncio.get_running_loop()
    started = loop.time()
    async with uploading(store, controller, pace_bytes_per_s=100_000) as uploader:
        verdicts = [uploader.submit([seal(1, batches(at, [1], value_bytes=1000))]) for at in range(4)]
        await asyncio.gather(*verdicts)
        sent = uploader.bytes_put
    # The first begins at once, so three quarters of the bytes have been waited for.
    assert loop.time() - started >= 0.75 * sent / 100_000 * 0.95
