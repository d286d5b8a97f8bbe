"""Judge a history in the spirit of Jepsen's Kafka workload. Pure: events in, findings out.

Events that are read, all others are ignored (`client` is a name, `topic` a string, `values` unique integers):

- `produce.invoke {client, request, topic, partition, values, sequence, idempotent, acks}`: `request` is a number that the
  outcome repeats, unique in the history; retries of the identical batch are the same request.
- `produce.ok {client, request, offset}`: `offset` of the first value, or -1 where the answer does not tell (acks=0 never
  gets here). `produce.fail {client, request, error}`: certainly not written. `produce.unknown {client, request, error}`:
  may be there, or may still come.
- `poll.invoke {client, topic, partition, offset}`, `poll.ok {client, topic, partition, offset, records, high_watermark,
  log_start}`: `records` are (offset, value) from `offset` on; `poll.out_of_range {client, topic, partition, offset,
  log_start, high_watermark}`; `poll.fail {client, topic, partition, offset, error}`.
- `assign {client, topic, partition, offset}`: the consumer goes on from `offset` on purpose (start, rebalance).
- `list_offsets.ok {client, topic, partition, start, end}`.
- `commit.invoke/ok/fail/unknown {client, group, topic, partition, offset, commit, generation}`: `commit` as `request`.
- `fetch_offsets.invoke/ok {client, group, topic, partition, offset, fetch}`: -1 for none.
- `delete_records.invoke/ok {client, topic, partition, offset}`.
- `final.read {topic, partition, start, end, records}`: everything that is there when all is quiet.
- `final.unread {topic, partition, error}`: the final reader could not read it to its end.
- `final.offsets {group, topic, partition, offset}`: what the group has committed when all is quiet.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.simulation.history import Event


@dataclass(frozen=True)
class Loss:
    """Offsets [start, end) of a partition that an operator declared lost."""

    topic: str
    partition: int
    start: int
    end: int


@dataclass(frozen=True)
class Final:
    """What the world knows at the end beside the history."""

    losses: Sequence[Loss] = ()
    quiet_from_ns: int | None = None
    """When faults stopped; None: liveness is not judged."""
    live_within_ns: int = 15_000_000_000
    """From then on every partition that is written to must acknowledge and serve within this time."""


@dataclass(frozen=True)
class Finding:
    """One anomaly and the events that prove it."""

    anomaly: str
    message: str
    events: tuple[Event, ...] = field(default=(), compare=False)

    def __str__(self) -> str:
        return "\n".join([f"{self.anomaly}: {self.message}", *(f"    {event}" for event in self.events)])


def check(history: Iterable[Event], final: Final) -> list[Finding]:
    """Every anomaly of the history; empty when all is well."""
    raise NotImplementedError
