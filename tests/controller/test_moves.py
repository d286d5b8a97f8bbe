"""Planned moves: wishes, the entry that fulfils them, drained nodes, preferred leaders."""

from typing import Any

import pytest

from controller import commands as c
from controller import facts as f
from controller.batch import choose
from controller.decide import decide
from controller.decide.moves import MOVES_PER_COMMAND_MAX, is_leaving
from controller.state import ClusterState
from protocol.errors import ErrorCode, KafkaError
from storage.seal import Move, Range
from tests.controller.builders import Cluster, move_command, next_range, wal_id


def refused(code: ErrorCode) -> "pytest.RaisesExc[KafkaError]":
    return pytest.raises(KafkaError, match=code.name)


@pytest.fixture
def cluster() -> Cluster:
    """Node 1 leads log 0 (`t-0`), node 2 log 1."""
    made = Cluster()
    made.register(1, 100)
    made.register(2, 200)
    made.create("t", 2)
    assert (made.log("t").leader_node, made.log("t", 1).leader_node) == (1, 2)
    return made


def ask_moves(made: Cluster, *moves: tuple[int, int], explicit: bool = False) -> c.MovesAnswer:
    command = c.RequestMoves(made.token(16), tuple(f.MoveTarget(*move) for move in moves), explicit)
    answer: c.MovesAnswer = made.decide(command)
    return answer


def commit_and_move(
    made: Cluster, incarnation: int, ranges: list[Range], moves: list[Move], seal: int | None = None
) -> Any:
    if seal is None:
        seal = made.state.broker_table.incarnations[incarnation].last_seal + 1
    return made.decide(move_command(incarnation, seal, ranges, moves))


def copy_of(made: Cluster) -> ClusterState:
    return ClusterState.decode(made.state.encode())


def test_a_log_changes_hands_with_its_last_commit(cluster: Cluster) -> None:
    log = cluster.log("t")
    assert ask_moves(cluster, (0, 2)) == c.MovesAnswer(1)
    assert cluster.facts == [f.MovesRequested((f.MoveTarget(0, 2),))]
    assert cluster.state.moves == {0: 2} and log.leader_node == 1
    assert copy_of(cluster) == cluster.state
    answer = commit_and_move(cluster, 100, [next_range(log)], [Move(0, 0, 10, 2)])
    assert answer.refused == ()
    assert [type(fact) for fact in cluster.facts] == [f.SealCommitted, f.LeaderNamed]
    assert (log.leader_node, log.leader_incarnation, log.epoch, log.wal_id) == (2, 200, 1, wal_id(200))
    assert (log.end, log.epochs) == (10, [(0, 0), (1, 10)])
    assert cluster.state.moves == {}
    assert cluster.commit(100, log).refused == (0,), "the old leader commits no more"
    assert cluster.commit(200, log).refused == ()
    assert copy_of(cluster) == cluster.state


def test_a_repeat_changes_nothing_and_gets_the_first_answer(cluster: Cluster) -> None:
    ask_moves(cluster, (0, 2))
    ranges = [next_range(cluster.log("t"))]
    first = commit_and_move(cluster, 100, ranges, [Move(0, 0, 10, 2)], seal=1)
    assert commit_and_move(cluster, 100, ranges, [Move(0, 0, 10, 2)], seal=1) == first
    assert cluster.facts == [] and cluster.log("t").epoch == 1


def test_a_log_without_new_records_moves_too(cluster: Cluster) -> None:
    ask_moves(cluster, (0, 2))
    commit_and_move(cluster, 100, [], [Move(0, 0, 0, 2)])
    assert (cluster.log("t").leader_node, cluster.log("t").epochs) == (2, [(1, 0)])


@pytest.mark.parametrize(
    "move",
    [Move(0, 1, 10, 2), Move(0, 0, 9, 2), Move(0, 0, 11, 2), Move(0, 0, 10, 1), Move(1, 0, 0, 1), Move(9, 0, 0, 2)],
)
def test_only_what_the_leader_said_truly_moves(cluster: Cluster, move: Move) -> None:
    ask_moves(cluster, (0, 2), (1, 1))
    commit_and_move(cluster, 100, [next_range(cluster.log("t"))], [move])
    assert [log.leader_node for log in cluster.state.logs.values()] == [1, 2]
    assert cluster.log("t").end == 10, "the commit stands all the same"
    assert cluster.state.moves == {0: 2, 1: 1}, "and the wishes"


def test_a_log_whose_range_was_refused_stays(cluster: Cluster) -> None:
    ask_moves(cluster, (0, 2))
    gap = next_range(cluster.log("t"))._replace(base=5, end=15)
    assert commit_and_move(cluster, 100, [gap], [Move(0, 0, 15, 2)]).refused == (0,)
    assert cluster.log("t").leader_node == 1


def test_a_move_that_nobody_wants_any_more_is_refused(cluster: Cluster) -> None:
    ask_moves(cluster, (0, 2))
    assert cluster.decide(c.CancelMoves(cluster.token(16), (0,))) == c.MovesAnswer(1)
    commit_and_move(cluster, 100, [], [Move(0, 0, 0, 2)])
    assert cluster.log("t").leader_node == 1
    answer = cluster.decide(c.CancelMoves(cluster.token(16), (0, 7)))
    codes = [(one.log_id, one.error_code) for one in answer.refused]
    assert codes == [(0, ErrorCode.NO_REASSIGNMENT_IN_PROGRESS), (7, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION)]


def test_what_cannot_be_is_refused_log_by_log(cluster: Cluster) -> None:
    cluster.end_silently(200)
    answer = ask_moves(cluster, (0, 2), (0, 9), (7, 1), (1, -1), (0, 1))
    assert [(one.log_id, one.error_code) for one in answer.refused] == [
        (7, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION),
        (1, ErrorCode.LEADER_NOT_AVAILABLE),
    ], "of several wishes for one log the last one counts"
    for node_id in (2, 9):
        answer = ask_moves(cluster, (0, node_id))
        assert [one.error_code for one in answer.refused] == [ErrorCode.INVALID_REPLICA_ASSIGNMENT]
        assert "no live session" in answer.refused[0].error_message
    with refused(ErrorCode.POLICY_VIOLATION):
        ask_moves(cluster, *[(log_id, 1) for log_id in range(MOVES_PER_COMMAND_MAX + 1)])
    assert cluster.state.moves == {}


def test_the_controller_chooses_when_it_is_left_to_it() -> None:
    made = Cluster()
    made.register(1, 100)
    made.create("t", 6)
    made.register(2, 200)
    made.register(3, 300)
    assert ask_moves(made, *[(log_id, -1) for log_id in range(6)]) == c.MovesAnswer(6)
    assert sorted(made.state.moves.values()) == [2, 2, 2, 3, 3, 3]
    made.end_silently(200, 300)
    assert made.state.moves == {}, "nobody waits for a broker that is gone"
    answer = ask_moves(made, (0, -1))
    assert "no other live broker" in answer.refused[0].error_message


def test_a_wish_for_where_it_is_withdraws_another_one(cluster: Cluster) -> None:
    ask_moves(cluster, (0, 2))
    assert ask_moves(cluster, (0, 2)) == c.MovesAnswer(1) and cluster.facts == []
    assert ask_moves(cluster, (0, 1)) == c.MovesAnswer(1)
    assert cluster.facts == [f.MovesCancelled((0,))]
    assert ask_moves(cluster, (0, 1)) == c.MovesAnswer(1) and cluster.facts == []


def test_preferred_leaders(cluster: Cluster) -> None:
    state = cluster.state
    assert [state.preferred_leader(log_id) for log_id in (0, 1)] == [1, 2], "where it was created"
    ask_moves(cluster, (0, 2))
    commit_and_move(cluster, 100, [], [Move(0, 0, 0, 2)])
    assert state.preferred_leader(0) == 1, "moved by nobody's choice"
    ask_moves(cluster, (0, 2), explicit=True)
    assert cluster.facts == [f.LeadersPreferred((f.MoveTarget(0, 2),))]
    assert state.preferred_leader(0) == 2
    ask_moves(cluster, (1, 1), explicit=True)
    assert state.preferred_leader(1) == 2, "not before it is done"
    assert copy_of(cluster) == state
    commit_and_move(cluster, 200, [], [Move(1, 0, 0, 1)])
    assert state.preferred_leader(1) == 1 and state.move_table.explicit == set()
    cluster.decide(c.DeleteTopics(cluster.token(16), (c.TopicRef("t"),)))
    assert state.move_table.preferred == {}
    assert copy_of(cluster) == state


def test_preferred_leaders_begin_with_the_format_level() -> None:
    made = Cluster(format_level=1)
    made.register(1, 100)
    made.create("t", 2)
    assert made.state.move_table.preferred == {}
    with refused(ErrorCode.UNSUPPORTED_VERSION):
        made.decide(c.DrainBroker(made.token(16), 1))
    made.apply(f.FormatLevel(2))
    assert made.state.move_table.preferred == {0: 1, 1: 1}


def test_a_drained_node_gives_all_and_gets_nothing(cluster: Cluster) -> None:
    cluster.create("u", 4)
    ask_moves(cluster, (0, 2))
    answer = cluster.decide(c.DrainBroker(cluster.token(16), 2))
    assert answer == c.DrainAnswer(3, 0) and cluster.state.drained == {2}
    led = [log.log_id for log in cluster.state.logs.values() if log.leader_node == 2]
    assert cluster.state.moves == dict.fromkeys(led, 1), "the wish to move there is void"
    assert copy_of(cluster) == cluster.state
    assert not is_leaving(cluster.state, 2)
    cluster.create("v", 3)
    assert {cluster.log("v", index).leader_node for index in range(3)} == {1}
    assert "drained" in ask_moves(cluster, (0, 2)).refused[0].error_message
    assert cluster.decide(c.DrainBroker(cluster.token(16), 2, undo=True)) == c.DrainAnswer(0, 0)
    assert cluster.state.drained == set() and cluster.state.moves == {}
    cluster.decide(c.DrainBroker(cluster.token(16), 2, undo=True))
    assert cluster.facts == []
    with refused(ErrorCode.BROKER_ID_NOT_REGISTERED):
        cluster.decide(c.DrainBroker(cluster.token(16), 9))


def test_a_drain_waits_for_somebody_who_takes_the_logs(cluster: Cluster) -> None:
    cluster.end_silently(200)
    assert cluster.decide(c.DrainBroker(cluster.token(16), 1)) == c.DrainAnswer(0, 1)
    assert is_leaving(cluster.state, 1)
    cluster.create("u")
    assert cluster.log("u").leader_node == 1, "better a drained leader than none"
    cluster.register(3, 300)
    assert cluster.decide(c.DrainBroker(cluster.token(16), 1)) == c.DrainAnswer(2, 0)
    assert cluster.state.moves == {0: 3, 2: 3}
    cluster.decide(c.DrainBroker(cluster.token(16), 3))
    assert cluster.state.moves == {}
    commit_and_move(cluster, 100, [], [Move(0, 0, 0, 3)])
    assert cluster.log("t").leader_node == 1


def test_brokers_that_stop_together_do_not_give_each_other_their_logs(cluster: Cluster) -> None:
    assert cluster.decide(c.LeaveCluster(cluster.token(16), 200)) == c.DrainAnswer(1, 0)
    assert cluster.state.moves == {1: 1} and copy_of(cluster) == cluster.state
    assert cluster.decide(c.LeaveCluster(cluster.token(16), 100)) == c.DrainAnswer(0, 1)
    assert cluster.state.moves == {}
    commit_and_move(cluster, 200, [], [Move(1, 0, 0, 1)])
    assert cluster.log("t", 1).leader_node == 2
    assert "about to stop" in ask_moves(cluster, (0, 2)).refused[0].error_message
    cluster.decide(c.CleanStop(cluster.token(16), 200))
    assert cluster.state.move_table.leaving == {100}
    cluster.register(2, 201)
    assert cluster.decide(c.LeaveCluster(cluster.token(16), 100)) == c.DrainAnswer(2, 0)
    assert cluster.state.moves == {0: 2, 1: 2}
    with refused(ErrorCode.STALE_BROKER_EPOCH):
        cluster.decide(c.LeaveCluster(cluster.token(16), 200))


def test_another_wal_kind_is_a_move_to_oneself(cluster: Cluster) -> None:
    def alter(kind: str) -> None:
        change = c.ConfigChange("tidelog.wal", 0, kind)
        cluster.decide(c.AlterConfigs(cluster.token(16), (c.ConfigAlteration(2, "t", False, (change,)),)))

    other = wal_id(100, 1)
    cluster.decide(c.RegisterWal(cluster.token(16), 100, other, "objects"))
    alter("objects")
    assert cluster.state.moves == {0: 1, 1: 1}, "to whoever has such a WAL, if the leader has none"
    commit_and_move(cluster, 100, [next_range(cluster.log("t"))], [Move(0, 0, 10, 1)])
    log = cluster.log("t")
    assert (log.leader_incarnation, log.epoch, log.wal_id) == (100, 1, other)
    assert cluster.state.moves == {1: 1}
    assert "no WAL of kind 'objects'" in ask_moves(cluster, (0, 2)).refused[0].error_message
    alter("volume")
    commit_and_move(cluster, 200, [], [Move(1, 0, 0, 1)])
    assert cluster.log("t", 1).leader_node == 1
    assert cluster.log("t", 1).wal_id == wal_id(100), "judged by the kind that the topic has then"
    commit_and_move(cluster, 100, [], [Move(0, 1, 10, 1)])
    assert cluster.log("t").wal_id == wal_id(100)


def test_a_wish_that_cannot_be_fulfilled_any_more_is_withdrawn(cluster: Cluster) -> None:
    ask_moves(cluster, (0, 2))
    change = c.ConfigChange("tidelog.wal", 0, "objects")
    cluster.decide(c.AlterConfigs(cluster.token(16), (c.ConfigAlteration(2, "t", False, (change,)),)))
    commit_and_move(cluster, 100, [], [Move(0, 0, 0, 2)])
    assert cluster.facts[1:] == [f.MovesCancelled((0,))]
    assert cluster.log("t").leader_node == 1 and cluster.state.moves == {}


def test_the_frozen_leader_dies(cluster: Cluster) -> None:
    ask_moves(cluster, (0, 2))
    cluster.end_silently(100)
    with refused(ErrorCode.STALE_BROKER_EPOCH):
        commit_and_move(cluster, 100, [], [Move(0, 0, 0, 2)])
    assert cluster.log("t").status == "recovering" and cluster.state.moves == {0: 2}
    cluster.register(1, 101, locked=(wal_id(100),))
    cluster.decide(c.ReportScan(cluster.token(16), wal_id(100), 101, 1, (), 0))
    assert cluster.log("t").epoch == 1
    leader = cluster.log("t").leader_node
    assert cluster.state.moves == ({} if leader == 2 else {0: 2}), "the wish outlives the leader"


def test_the_target_dies_after_it_was_named(cluster: Cluster) -> None:
    ask_moves(cluster, (0, 2))
    commit_and_move(cluster, 100, [next_range(cluster.log("t"))], [Move(0, 0, 10, 2)])
    cluster.end_silently(200)
    log = cluster.log("t")
    assert (log.status, log.wal_id) == ("recovering", wal_id(200))
    named = cluster.decide(c.NameRecoverer(cluster.token(16), wal_id(200), 100))
    cluster.decide(c.ReportScan(cluster.token(16), wal_id(200), 100, named.number, (), 0))
    assert (log.status, log.leader_node, log.epoch, log.end) == ("open", 1, 2, 10)
    assert log.epochs == [(0, 0), (2, 10)], "an epoch without records leaves no trace"


def test_a_log_that_comes_back_is_recovered_from_what_it_got_last(cluster: Cluster) -> None:
    log = cluster.log("t")
    ask_moves(cluster, (0, 2))
    commit_and_move(cluster, 100, [next_range(log)], [Move(0, 0, 10, 2)])
    ask_moves(cluster, (0, 1))
    commit_and_move(cluster, 200, [next_range(log)], [Move(0, 1, 20, 1)])
    assert (log.epoch, log.wal_id, log.end) == (2, wal_id(100), 20)
    cluster.end_silently(100)
    named = cluster.decide(c.NameRecoverer(cluster.token(16), wal_id(100), 200))
    scan = cluster.decide(c.ReportScan(cluster.token(16), wal_id(100), 200, named.number, (f.ScannedLog(0, 0, 30),), 5))
    assert scan.logs == (c.ReplayLog(0, 2, 20, 30),)


def test_moves_of_one_log_do_not_share_an_entry(cluster: Cluster) -> None:
    wish = c.RequestMoves(cluster.token(16), (f.MoveTarget(0, 2),))
    other = c.RequestMoves(cluster.token(16), (f.MoveTarget(1, 1),))
    move = move_command(100, 1, [], [Move(0, 0, 0, 2)])
    cancel = c.CancelMoves(cluster.token(16), (0,))
    state = cluster.state

    def chosen(*commands: Any) -> list[int]:
        return choose(state, [(command, index) for index, command in enumerate(commands)])

    assert chosen(wish, move, cancel, other) == [0, 3]
    assert chosen(move, c.DrainBroker(cluster.token(16), 2)) == [0]
    delete = c.DeleteTopics(cluster.token(16), (c.TopicRef("t"),))
    assert chosen(delete, wish) == chosen(wish, delete) == [0]
    assert decide(state, wish, cluster.context()).answer == c.MovesAnswer(1)


def test_a_node_that_registers_again_stays_drained(cluster: Cluster) -> None:
    cluster.decide(c.DrainBroker(cluster.token(16), 2))
    cluster.decide(c.CleanStop(cluster.token(16), 200))
    cluster.register(2, 201)
    cluster.create("u", 3)
    assert {cluster.log("u", index).leader_node for index in range(3)} == {1}
