"""Short ways to build a cluster in tests: a state that commands are decided on and applied to, without a log."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

from controller import commands as c
from controller import facts as f
from controller.commands import encode_answer
from controller.configs import PlainRules
from controller.decide import Context, Heard, Limits, decide, is_remembered
from controller.state import ClusterState
from storage.seal import CommitAndMove, CommitAnswer, CommitSeal, CommittedThrough, Move, Range, Recovery, SegmentObject

CLUSTER = "AAAAAAAAAAAAAAAAAAAAAA"
LISTENERS = (f.Listener("PLAINTEXT", "PLAINTEXT", "127.0.0.1", 9092),)


def tokens(seed: str = "") -> Callable[[int], bytes]:
    """Different bytes at every call, the same for the same seed."""
    count = 0

    def token(n: int) -> bytes:
        nonlocal count
        count += 1
        return hashlib.shake_128(f"{seed}:{count}".encode()).digest(n)

    return token


def wal_id(incarnation: int, index: int = 0) -> bytes:
    return bytes([0xAA, index]) + incarnation.to_bytes(14, "big")


class Cluster:
    """A state, a clock that stands still, and what heartbeats said."""

    def __init__(self, format_level: int = f.FORMAT_LEVEL) -> None:
        self.state = ClusterState(CLUSTER)
        self.token = tokens("cluster")
        self.rules = PlainRules()
        self.limits = Limits()
        self.heard = Heard({}, {}, {})
        self.now_ms = 1_700_000_000_000
        self.facts: list[f.Fact] = []
        self.apply(f.ControllerElected(1, 1, 100), f.FormatLevel(format_level))

    def context(self) -> Context:
        return Context(self.now_ms, self.token, self.rules, self.limits, self.heard)

    def apply(self, *facts: f.Fact, answers: tuple[tuple[bytes, Any], ...] = ()) -> None:
        self.state.apply_entry(self.state.position + 1, bytes(32), self.now_ms, answers, facts)

    def decide(self, command: Any) -> Any:
        """Decides and applies; the facts are in `facts`."""
        decision = decide(self.state, command, self.context())
        self.facts = list(decision.facts)
        if decision.facts:
            kept = ((command.command_id, encode_answer(decision.answer)),) if is_remembered(command) else ()
            self.apply(*decision.facts, answers=kept)
        return decision.answer

    # Commands

    def register(self, node_id: int, incarnation: int, locked: tuple[bytes, ...] = (), boot: str = "boot") -> Any:
        wals = (c.NewWal(wal_id(incarnation), "volume"),)
        level = self.state.format_level
        command = c.RegisterBroker(self.token(16), node_id, incarnation, boot, None, LISTENERS, wals, locked, level)
        return self.decide(command)

    def create(self, name: str, partitions: int = 1, **configs: str) -> Any:
        pairs = tuple((key.replace("_", "."), value) for key, value in configs.items())
        return self.decide(c.CreateTopics(self.token(16), (c.NewTopic(name, partitions, 1, pairs),)))

    def log(self, topic: str, partition: int = 0) -> Any:
        return self.state.logs[self.state.topics[topic].log_ids[partition]]

    def end_silently(self, *incarnations: int) -> None:
        self.decide(c.EndSilentSessions(self.token(16), incarnations))

    def seal(
        self,
        incarnation: int,
        seal: int,
        ranges: list[Range],
        recovery: Recovery | None = None,
        parts: int = 1,
        through: tuple[CommittedThrough, ...] = (),
    ) -> CommitAnswer:
        return self.decide(seal_command(incarnation, seal, ranges, recovery, parts, through))

    def commit_ranges(self, incarnation: int, ranges: list[Range], recovery: Recovery | None = None) -> CommitAnswer:
        """The next seal of the incarnation, with these ranges."""
        return self.seal(incarnation, self.state.broker_table.incarnations[incarnation].last_seal + 1, ranges, recovery)

    def commit(self, incarnation: int, *logs: Any, offsets: int = 10, length: int = 100, timestamp: int = -1) -> Any:
        """Seals the next `offsets` offsets of each log, as its leader would."""
        seal = self.state.broker_table.incarnations[incarnation].last_seal + 1
        return self.seal(incarnation, seal, [next_range(log, offsets, length, timestamp) for log in logs])


def next_range(log: Any, offsets: int = 10, length: int = 100, timestamp: int = -1) -> Range:
    return Range(log.log_id, log.epoch, log.end, log.end + offsets, 0, length, timestamp, log.end + offsets, 1)


def seal_command(
    incarnation: int,
    seal: int,
    ranges: list[Range],
    recovery: Recovery | None = None,
    parts: int = 1,
    through: tuple[CommittedThrough, ...] = (),
) -> CommitSeal:
    objects = tuple(
        SegmentObject(f"segments/1/{incarnation:016x}/{seal}-{part}", 1000, tuple(ranges[part::parts]))
        for part in range(parts)
    )
    command_id = incarnation.to_bytes(8, "big") + seal.to_bytes(8, "big")
    return CommitSeal(command_id, 1, incarnation, seal, objects, through, recovery)


def move_command(incarnation: int, seal: int, ranges: list[Range], moves: list[Move]) -> CommitAndMove:
    """A seal with the moves that it is the last step of."""
    plain = seal_command(incarnation, seal, ranges)
    fields = {field.name: getattr(plain, field.name) for field in dataclasses.fields(plain)}
    return CommitAndMove(**fields, moves=tuple(moves))
