"""Leadership that is to move: wishes, drains, brokers that leave. `storage.seal.CommitAndMove` belongs here too."""

from dataclasses import dataclass

from controller.facts import MoveTarget


@dataclass(frozen=True, slots=True)
class RequestMoves:
    """These nodes are to lead these logs; node -1: whichever other one is best. Answer `MovesAnswer`, at once: the
    moves are done when facts name the new leaders.

    `explicit`: an operator chose the nodes, they become the preferred leaders. Refused per log:
    UNKNOWN_TOPIC_OR_PARTITION, INVALID_REPLICA_ASSIGNMENT (the node has no live session, is drained, or has no WAL of
    the topic's kind), LEADER_NOT_AVAILABLE (-1, and the log has no leader). A node that leads the log already has no
    more to do: an earlier wish is withdrawn. POLICY_VIOLATION for more than 10,000 logs.
    """

    command_id: bytes
    moves: tuple[MoveTarget, ...]
    explicit: bool = False


@dataclass(frozen=True, slots=True)
class CancelMoves:
    """These logs stay. Answer `MovesAnswer`: NO_REASSIGNMENT_IN_PROGRESS for those that nobody wants to move."""

    command_id: bytes
    log_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DrainBroker:
    """The node gets no new logs, and those that it leads are to move to others; `undo` takes it back, and the moves.

    Answer `DrainAnswer`. Asking again gives targets to logs that had none. BROKER_ID_NOT_REGISTERED if nobody ever
    registered under the node id.
    """

    command_id: bytes
    node_id: int
    undo: bool = False


@dataclass(frozen=True, slots=True)
class LeaveCluster:
    """The incarnation is about to stop cleanly: what it leads is to move to others. Answer `DrainAnswer`; ask again for
    what is left.
    """

    command_id: bytes
    incarnation: int
