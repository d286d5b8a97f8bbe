"""Which commands share an entry: property first, then the rules one by one."""

from typing import Any

from controller import commands as c
from controller import facts as f
from controller.batch import COMMANDS_PER_ENTRY_MAX, LARGE_PER_ENTRY_MAX, choose, touches
from controller.decide import decide
from tests.controller.builders import Cluster, next_range, seal_command


def cluster() -> Cluster:
    made = Cluster()
    made.register(1, 100)
    made.register(2, 200)
    made.create("a", 4)
    made.create("b.c")
    return made


def chosen(made: Cluster, *commands: Any) -> list[int]:
    return choose(made.state, [(command, index) for index, command in enumerate(commands)])


def test_different_things_share_an_entry() -> None:
    made = cluster()
    t = made.token
    by_broker = [[log for log in made.state.logs.values() if log.leader_incarnation == one] for one in (100, 200)]
    commands = [
        seal_command(100, 1, [next_range(log) for log in by_broker[0]]),
        seal_command(200, 1, [next_range(log) for log in by_broker[1]]),
        c.CreateTopics(t(16), (c.NewTopic("x"), c.NewTopic("y"))),
        c.CreateInternalTopic(t(16), "__consumer_offsets", 5),
        c.AllocateProducerIds(t(16), 100),
        c.AllocateProducerIds(t(16), 200),
        c.AlterConfigs(t(16), (c.ConfigAlteration(2, "a", False, (c.ConfigChange("k", 0, "v"),)),)),
        c.AlterConfigs(t(16), (c.ConfigAlteration(4, "1", False, (c.ConfigChange("k", 0, "v"),)),)),
        c.AdvanceLogStart(t(16), (f.LogStart(0, 0),)),
        c.ForgetObjects(t(16), ()),
        c.CreatePartitions(t(16), (c.MorePartitions("b.c", 3),)),
        c.DeleteTopics(t(16), (c.TopicRef("unknown"), c.TopicRef(None, b"?" * 16))),
        c.FreeNames(t(16), ("gone",)),
    ]
    assert chosen(made, *commands) == list(range(len(commands)))
    context = made.context()
    decisions = [decide(made.state, command, context) for command in commands]
    made.apply(*[fact for decision in decisions for fact in decision.facts])
    assert made.state.next_producer_id == 2000
    assert sorted(made.state.logs) == list(range(4 + 1 + 2 + 5 + 2)), "log ids are handed out once"
    loads = [sum(log.leader_node == node for log in made.state.logs.values()) for node in (1, 2)]
    assert loads == [7, 7]


def test_the_same_thing_waits_and_is_not_overtaken() -> None:
    made = cluster()
    t = made.token
    create = c.CreateTopics(t(16), (c.NewTopic("x.y"), c.NewTopic("z")))
    collide = c.CreateTopics(t(16), (c.NewTopic("x_y"), c.NewTopic("w")))
    third = c.CreateTopics(t(16), (c.NewTopic("w"),))
    assert chosen(made, create, collide, third) == [0], "the third would overtake the second"
    delete = c.DeleteTopics(t(16), (c.TopicRef("a"),))
    seal = seal_command(100, 1, [next_range(made.log("a"))])
    start = c.AdvanceLogStart(t(16), (f.LogStart(1, 0),))
    for other in (seal, start, c.SweepLogStarts(t(16), (f.LogStart(1, 0),))):
        assert chosen(made, delete, other) == [0]
        assert chosen(made, other, delete) == [0]
    assert chosen(made, seal, start) == [0, 1], "the end of a log and its start do not disturb each other"
    assert chosen(made, seal, seal_command(100, 2, [])) == [0]


def test_what_changes_sessions_goes_alone() -> None:
    made = cluster()
    t = made.token
    end = c.EndSilentSessions(t(16), (100,))
    seal = seal_command(100, 1, [next_range(made.log("a"))])
    assert touches(made.state, end) is None
    assert chosen(made, end, seal) == [0]
    assert chosen(made, seal, end, c.AllocateProducerIds(t(16), 100)) == [0]
    assert chosen(made) == []


def test_an_entry_holds_only_so_many_requests_of_administrators() -> None:
    """Each may be a megabyte, and nobody has a session while an entry cannot be written."""
    made = cluster()
    large: list[Any] = [
        c.AlterConfigs(made.token(16), (c.ConfigAlteration(32, f"group {number}", False, ()),)) for number in range(40)
    ]
    again = c.AlterConfigs(made.token(16), (c.ConfigAlteration(32, "group 39", False, ()),))
    small = c.AllocateProducerIds(made.token(16), 100)
    assert chosen(made, *large, again, small) == [*range(LARGE_PER_ENTRY_MAX), 41], "nothing is overtaken"


def test_an_entry_is_bounded() -> None:
    made = cluster()
    many = [c.AllocateProducerIds(made.token(16), 100) for _ in range(COMMANDS_PER_ENTRY_MAX + 5)]
    assert len(chosen(made, *many)) == COMMANDS_PER_ENTRY_MAX
