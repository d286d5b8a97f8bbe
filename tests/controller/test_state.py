"""The state as a whole: any sequence of commands keeps its invariants, and a snapshot is the state."""

from typing import Any

import msgpack
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from controller import commands as c
from controller import facts as f
from controller.codec import Malformed
from controller.entries import NewerFormat
from controller.log_index import OPEN, RECOVERING
from controller.rows import ROWS_PER_CHUNK
from controller.state import ClusterState
from controller.wals import ACTIVE
from protocol.errors import ErrorCode, KafkaError
from storage.seal import Move, Recovery
from tests.controller import golden
from tests.controller.builders import Cluster, move_command, next_range, wal_id

NODES = st.integers(1, 3)
TOPICS = st.sampled_from(["a", "b", "c"])
MAY_REFUSE = {
    ErrorCode.DUPLICATE_BROKER_REGISTRATION,
    ErrorCode.STALE_BROKER_EPOCH,
    ErrorCode.BROKER_ID_NOT_REGISTERED,
    ErrorCode.CONCURRENT_TRANSACTIONS,
    ErrorCode.INVALID_REQUEST,
    ErrorCode.POLICY_VIOLATION,
    ErrorCode.FENCED_STATE_EPOCH,
    ErrorCode.INVALID_RECORD_STATE,
}


class Machine(RuleBasedStateMachine):
    """Brokers that come, die and recover each other, topics, seals good and bad, losses; ghosts watch the promises."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = Cluster()
        self.incarnations = 0
        self.history: list[tuple[int, Any, list[f.Fact]]] = []
        self.leaders: dict[tuple[int, int], int] = {}
        self.ends: dict[int, int] = {}
        self.starts: dict[int, int] = {}

    def ask(self, command: Any) -> Any:
        try:
            answer = self.cluster.decide(command)
        except KafkaError as error:
            assert error.code in MAY_REFUSE, error
            return None
        self.watch(self.cluster.facts)
        return answer

    def watch(self, facts: list[f.Fact]) -> None:
        """Ghosts: one leader per log and epoch; ends and starts never go back."""
        for fact in facts:
            if isinstance(fact, f.LeaderNamed):
                held = self.leaders.setdefault((fact.log_id, fact.epoch), fact.incarnation)
                assert held == fact.incarnation, "two leaders in one epoch"
        for log in self.cluster.state.logs.values():
            assert log.end >= self.ends.get(log.log_id, 0)
            assert log.start >= self.starts.get(log.log_id, 0)
            self.ends[log.log_id], self.starts[log.log_id] = log.end, log.start

    def alive(self) -> list[int]:
        return [broker.incarnation for broker in self.cluster.state.broker_table.alive()]

    @rule(node=NODES, same_machine=st.booleans(), lock=st.booleans())
    def register(self, node: int, same_machine: bool, lock: bool) -> None:
        self.incarnations += 1
        incarnation = node * 1000 + self.incarnations
        old = [wal.wal_id for wal in self.cluster.state.wals.values() if wal.node_id == node and not wal.closed]
        boot = "boot" if same_machine else f"boot {self.incarnations}"
        wals = (c.NewWal(wal_id(incarnation), "volume"),)
        listeners = (f.Listener("P", "PLAINTEXT", "h", 1),)
        self.ask(
            c.RegisterBroker(
                self.cluster.token(16), node, incarnation, boot, None, listeners, wals, tuple(old) if lock else ()
            )
        )

    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        if alive := self.alive():
            self.ask(c.EndSilentSessions(self.cluster.token(16), (data.draw(st.sampled_from(alive)),)))

    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        if alive := self.alive():
            self.ask(c.CleanStop(self.cluster.token(16), data.draw(st.sampled_from(alive))))

    @rule(topic=TOPICS, partitions=st.integers(1, 3))
    def create(self, topic: str, partitions: int) -> None:
        self.ask(c.CreateTopics(self.cluster.token(16), (c.NewTopic(topic, partitions),)))

    @rule(topic=TOPICS)
    def delete(self, topic: str) -> None:
        self.ask(c.DeleteTopics(self.cluster.token(16), (c.TopicRef(topic),)))

    @rule(topic=TOPICS, more=st.integers(1, 5))
    def grow(self, topic: str, more: int) -> None:
        self.ask(c.CreatePartitions(self.cluster.token(16), (c.MorePartitions(topic, more),)))

    @rule(data=st.data(), shift=st.sampled_from([0, 0, 0, -1, 1]), stale=st.booleans())
    def seal(self, data: st.DataObject, shift: int, stale: bool) -> None:
        """A seal of any log by any broker: only the right ones may count."""
        state = self.cluster.state
        if not self.alive() or not state.logs:
            return
        incarnation = data.draw(st.sampled_from(self.alive()))
        log = state.logs[data.draw(st.sampled_from(sorted(state.logs)))]
        found = next_range(log, data.draw(st.integers(1, 9)))
        found = found._replace(base=found.base + shift, leader_epoch=found.leader_epoch - stale)
        right = log.leader_incarnation == incarnation and not shift and not stale and log.status == OPEN
        answer = self.cluster.commit_ranges(incarnation, [found]) if found.base >= 0 else None
        if answer is not None:
            self.watch(self.cluster.facts)
            assert (answer.refused == ()) == right

    @rule(data=st.data(), node=NODES, stale=st.booleans(), shift=st.sampled_from([0, 0, 1]), do=st.booleans())
    def move(self, data: st.DataObject, node: int, stale: bool, shift: int, do: bool) -> None:
        """A wish, and perhaps what its leader asks for then: only what is true and wanted moves."""
        state = self.cluster.state
        if not state.logs:
            return
        log = state.logs[data.draw(st.sampled_from(sorted(state.logs)))]
        self.ask(c.RequestMoves(self.cluster.token(16), (f.MoveTarget(log.log_id, node),)))
        leader = log.leader_incarnation
        if not do or not state.broker_table.is_alive(leader):
            return
        right = not stale and not shift and state.moves.get(log.log_id) == node
        found, epoch = next_range(log, 2), log.epoch
        asked = Move(log.log_id, epoch - stale, found.end + shift, node)
        seal = state.broker_table.incarnations[leader].last_seal + 1
        assert self.ask(move_command(leader, seal, [found], [asked])).refused == ()
        assert (log.leader_incarnation != leader) == right == (log.epoch == epoch + 1)

    @rule(node=NODES, undo=st.booleans())
    def drain(self, node: int, undo: bool) -> None:
        """Nothing new comes to the node, and its logs have somewhere to go if anybody takes them."""
        state = self.cluster.state
        if self.ask(c.DrainBroker(self.cluster.token(16), node, undo)) is not None and not undo:
            assert node not in state.moves.values()
            led = [log.log_id for log in state.logs.values() if log.leader_node == node]
            others = [one for one in state.broker_table.alive() if one.node_id not in state.drained]
            assert not others or all(log_id in state.moves for log_id in led)

    @rule(data=st.data(), holds=st.lists(st.integers(0, 20), max_size=4), finish=st.booleans(), whole=st.booleans())
    def recover(self, data: st.DataObject, holds: list[int], finish: bool, whole: bool) -> None:
        """Name, scan, replay, retire; perhaps only half of it."""
        state = self.cluster.state
        ended = [wal for wal in state.wals.values() if not wal.closed and wal.state != ACTIVE]
        if not ended or not self.alive():
            return
        wal = data.draw(st.sampled_from(ended))
        me = data.draw(st.sampled_from(self.alive()))
        named = self.ask(c.NameRecoverer(self.cluster.token(16), wal.wal_id, me))
        if named is None:
            return
        bound = [state.logs[log_id] for log_id in state.log_index.through(wal.wal_id)]
        found = [f.ScannedLog(log.log_id, 0, log.end + n) for log, n in zip(bound, holds)]
        scan = self.ask(
            c.ReportScan(self.cluster.token(16), wal.wal_id, me, named.number, tuple(found), 50, complete=whole)
        )
        if scan is None or not finish:
            return
        for replay in scan.logs:
            log = state.logs[replay.log_id]
            answer = self.cluster.commit_ranges(
                me, [next_range(log, replay.scanned_end - log.end)], Recovery(wal.wal_id, named.number)
            )
            assert answer.refused == ()
            self.watch(self.cluster.facts)
        retired = self.ask(c.RetireWal(self.cluster.token(16), wal.wal_id, me, named.number))
        assert (retired is None) == (not whole)

    @rule(data=st.data(), destroyed=st.booleans())
    def declare_lost(self, data: st.DataObject, destroyed: bool) -> None:
        if wals := list(self.cluster.state.wals):
            self.ask(c.DeclareLost(self.cluster.token(16), data.draw(st.sampled_from(wals)), destroyed))

    @rule(data=st.data(), back=st.integers(0, 5))
    def trim(self, data: st.DataObject, back: int) -> None:
        if logs := self.cluster.state.logs:
            log = logs[data.draw(st.sampled_from(sorted(logs)))]
            start = f.LogStart(log.log_id, max(0, log.end - back))
            self.ask(c.AdvanceLogStart(self.cluster.token(16), (start,)))

    @rule(group=st.integers(1, 100), data=st.data())
    def lease(self, group: int, data: st.DataObject) -> None:
        if wals := list(self.cluster.state.wals):
            self.cluster.apply(f.LeaseExtended((f.WalGroup(data.draw(st.sampled_from(wals)), group),)))

    @rule()
    def sweep(self) -> None:
        self.ask(c.FreeNames(self.cluster.token(16), tuple(self.cluster.state.topic_table.deleted)))
        self.ask(c.ForgetObjects(self.cluster.token(16), tuple(self.cluster.state.objects.doomed)))

    @invariant()
    def leaders_are_alive_and_lead_through_their_own_instance(self) -> None:
        state = self.cluster.state
        for log in state.logs.values():
            assert log.log_id in state.log_index.led_through[log.wal_id]
            wal = state.wals.get(log.wal_id)
            if log.leader_node >= 0:
                assert log.status == OPEN and state.broker_table.is_alive(log.leader_incarnation)
                assert wal is not None and wal.state == ACTIVE and wal.incarnation == log.leader_incarnation
            elif log.status == RECOVERING:
                assert wal is not None and not wal.closed and wal.state != ACTIVE
            else:
                assert log.wal_id == f.NO_UUID
                assert not state.broker_table.alive(), "an open log waits only while nobody is there to lead it"

    @invariant()
    def ranges_have_no_holes_but_declared_ones_and_name_live_objects(self) -> None:
        state = self.cluster.state
        lost = {(log[0], log[3]): log[4] for loss in state.wal_table.losses.values() for log in loss.logs}
        refs: dict[int, int] = {}
        for log in state.logs.values():
            end = None
            for index in range(log.range_count):
                row = log.row(index)
                refs[row.object] = refs.get(row.object, 0) + 1
                while end is not None and end != row.range.base:
                    end = lost[log.log_id, end]
                end = row.range.end
            assert log.start <= log.end
            assert [epoch for epoch, _ in log.epochs] == sorted({epoch for epoch, _ in log.epochs})
        assert refs == {number: found.refs for number, found in state.objects.named.items()}
        assert not set(state.objects.numbers) & set(state.objects.doomed)
        assert state.log_index.range_total == sum(log.range_count for log in state.logs.values())

    @invariant()
    def a_snapshot_is_the_state(self) -> None:
        state = self.cluster.state
        if state.position % 5 == 0:
            assert ClusterState.decode(state.encode()) == state

    def teardown(self) -> None:
        state = self.cluster.state
        copy = ClusterState.decode(list(state.encode_chunks()))
        assert copy == state and copy.encode() == state.encode()


Machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestMachine = Machine.TestCase


def test_a_state_differs_from_another() -> None:
    one, other = golden.cluster().state, golden.cluster().state
    assert one == other and one != "state"
    other.apply(f.FormatLevel(2))
    assert one != other


def test_adopting_keeps_the_identity() -> None:
    state = ClusterState(golden.CLUSTER)
    state.adopt(golden.cluster().state)
    assert state == golden.cluster().state
    with pytest.raises(AssertionError):
        state.adopt(ClusterState("B" * 22))


def test_facts_that_contradict_the_state_are_bugs() -> None:
    cluster = golden.cluster()
    for fact in (
        f.ControllerElected(9, 1, 1),
        f.ControllerResigned(9),
        f.FormatLevel(1),
        f.TopicCreated("t", b"new" * 5 + b"!", False, (), ()),
        f.SealCommitted(101, 9, ()),
        f.LossDeclared(0, 1, 2),
        f.ProducerIdsAllocated(0, 1000),
        f.WalRetired(wal_id(100)),
    ):
        with pytest.raises(AssertionError):
            cluster.state.apply(fact)
    with pytest.raises(AssertionError):
        cluster.state.apply_entry(cluster.state.position, bytes(32), 0, (), ())


def test_damaged_snapshots_are_refused_not_half_read() -> None:
    data = golden.cluster().state.encode()
    pack = msgpack.packb
    for bad in (
        b"",
        b"\xc1",
        pack([1, []]),
        data + pack([7, [["no topic", 0, [0]]]]),
        data + pack(5),
    ):
        with pytest.raises(Malformed):
            ClusterState.decode(bad)


def test_newer_snapshots_are_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    data = golden.cluster().state.encode()
    pack = msgpack.packb
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    _, head = next(unpacker)
    head[5] = f.FORMAT_LEVEL + 1
    for newer in (pack([0, [2, "x"]]), pack([0, head]), data + pack([99, [["new"]]])):
        with pytest.raises(NewerFormat, match="upgrade"):
            ClusterState.decode(newer)


def test_a_state_without_anything_new_is_read_by_those_who_know_nothing_new() -> None:
    """What came with a format level has sections of its own, and empty ones are not written."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(golden.cluster().state.encode())
    assert {section for section, _ in unpacker} <= set(range(12))


def test_a_big_state_is_encoded_in_slices() -> None:
    cluster = Cluster()
    cluster.register(1, 100)
    cluster.create("t", ROWS_PER_CHUNK * 3 + 1)
    assert len(list(cluster.state.encode_chunks())) >= 1 + 4
    assert ClusterState.decode(cluster.state.encode_chunks()) == cluster.state
