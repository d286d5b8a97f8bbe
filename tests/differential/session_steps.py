"""Steps about fetch sessions: what a consumer asked for is remembered, and only what changed is told again."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from protocol import messages as m
from protocol.apis import ApiKey
from protocol.records import build_batch
from tests.differential.log_steps import TIME, LogSteps
from tests.differential.machine import NAMES, UNKNOWN_ID

PLACES = st.lists(
    st.tuples(st.sampled_from([NAMES[0]] * 3 + [NAMES[1]]), st.sampled_from([0, 0, 1, 1, 9])), max_size=3, unique=True
)
OFFSET = st.sampled_from([0, 0, 0, 1, 2, 3, 5, 100, -1])
BY_ID = 13
OPENS, FINAL = 0, -1
SOMEBODY_ELSES = 12345
NOT_FOUND = 70


def by_topic(answer: Any) -> Any:
    """A topic's partitions together: where they are in an answer says nothing."""
    topics: dict[tuple[str, bytes], Any] = {}
    for one in answer.responses:
        topics.setdefault((one.topic, one.topic_id), one.__class__(topic=one.topic, topic_id=one.topic_id))
    for one in answer.responses:
        known = topics[one.topic, one.topic_id]
        known.partitions = sorted([*known.partitions, *one.partitions], key=lambda part: part.partition_index)
    answer.responses = list(topics.values())
    return answer


class SessionSteps(LogSteps):
    """Fetch with sessions, while topics come and go and are written to."""

    def __init__(self, pair: Any) -> None:
        super().__init__(pair)
        self.session = 0
        """Kafka's id of it."""
        self.next_epoch = 1
        self.fetch_version = BY_ID

    @initialize(data=st.data())
    def choose_version(self, data: st.DataObject) -> None:
        """A session is of topics by name or by id; most of its requests are of one version."""
        self.fetch_version = self.version(data, ApiKey.FETCH, first=7)

    def _partition(self, data: st.DataObject, partition: int) -> Any:
        version = self.fetch_version
        return m.FetchRequest.FetchPartition(
            partition=partition,
            fetch_offset=data.draw(OFFSET, label="offset"),
            partition_max_bytes=data.draw(st.sampled_from([1 << 20, 1 << 20, 1 << 20, 1, 0])),
            current_leader_epoch=data.draw(st.sampled_from([-1] * 6 + [0, 5])) if version >= 9 else -1,
            last_fetched_epoch=data.draw(st.sampled_from([-1] * 8 + [0, 3])) if version >= 12 else -1,
        )

    def _topics(self, data: st.DataObject, places: list[tuple[str, int]], version: int) -> list[Any]:
        return [
            m.FetchRequest.FetchTopic(
                partitions=[self._partition(data, partition)], **self._named(self.name(short), version)
            )
            for short, partition in places
        ]

    def _named(self, name: str, version: int) -> dict[str, Any]:
        if version < BY_ID:
            return {"topic": name}
        return {"topic": "", "topic_id": self.topic_ids.get(name, UNKNOWN_ID)}

    def _fetch(self, data: st.DataObject, session: int, epoch: int, version: int, **fields: Any) -> Any:
        request = m.FetchRequest(
            max_wait_ms=0,
            min_bytes=data.draw(st.sampled_from([0, 1])),
            max_bytes=data.draw(st.sampled_from([1 << 25, 1 << 25, 1 << 25, 1, 200])),
            isolation_level=data.draw(st.sampled_from([0, 1])),
            session_id=session,
            session_epoch=epoch,
            **fields,
        )
        answer = self.pair.ask(ApiKey.FETCH, version, request, part=by_topic)
        if answer is not None and session == self.session and not answer.session_id:
            self.session = 0 if answer.error_code in (0, NOT_FOUND) else session
        return answer

    @rule(data=st.data(), places=PLACES)
    def open(self, data: st.DataObject, places: list[tuple[str, int]]) -> None:
        """A full request; one that names a session is done with that."""
        old = data.draw(st.sampled_from([0, 0, self.session, SOMEBODY_ELSES]), label="old session")
        version = self.fetch_version
        answer = self._fetch(data, old, OPENS, version, topics=self._topics(data, places, version))
        if answer is not None and answer.session_id:
            self.session, self.next_epoch = answer.session_id, 1

    @rule(data=st.data(), places=PLACES, forgotten=PLACES)
    def go_on(self, data: st.DataObject, places: list[tuple[str, int]], forgotten: list[tuple[str, int]]) -> None:
        """Only what is to change is said; some partitions are forgotten."""
        version = self.fetch_version
        if data.draw(st.sampled_from([False] * 9 + [True]), label="the other way to name topics"):
            version = BY_ID - 1 if version >= BY_ID else BY_ID
        epoch = max(1, self.next_epoch + data.draw(st.sampled_from([0] * 10 + [-1, 1]), label="epoch slip"))
        session = data.draw(st.sampled_from([self.session] * 10 + [SOMEBODY_ELSES, 0]), label="session")
        gone = m.FetchRequest.ForgottenTopic
        some = data.draw(st.booleans(), label="forget")
        answer = self._fetch(
            data,
            session,
            epoch,
            version,
            topics=self._topics(data, places, version),
            forgotten_topics_data=[
                gone(partitions=[partition], **self._named(self.name(short), version)) for short, partition in forgotten
            ]
            if some
            else [],
        )
        if answer is not None and answer.error_code == 0 and epoch == self.next_epoch and session == self.session:
            self.next_epoch += 1

    @rule(data=st.data())
    def poll(self, data: st.DataObject) -> None:
        """What is new?"""
        if not self.session:
            self.open(data, [(NAMES[0], 0), (NAMES[0], 1)])
        answer = self._fetch(data, self.session, self.next_epoch, self.fetch_version)
        if answer is not None and answer.error_code == 0 and self.session:
            self.next_epoch += 1

    @rule(
        data=st.data(),
        steps=st.lists(st.sampled_from(["write", "write", "poll", "poll", "go on", "delete"]), min_size=3),
    )
    def consume(self, data: st.DataObject, steps: list[str]) -> None:
        """For a while, as records are written and deleted."""
        for step in steps:
            partition = data.draw(st.sampled_from([0, 1]))
            if step == "write":
                records: list[Any] = [(TIME, b"k", b"v" * data.draw(st.sampled_from([1, 100])), ())]
                self.send(12, self.name(NAMES[0]), partition, bytes(build_batch(records)), {})
            elif step == "poll":
                self.poll(data)
            elif step == "go on":
                self.go_on(data, data.draw(PLACES), data.draw(PLACES))
            else:
                self.delete_records(data, NAMES[0], partition, 1)

    @rule(data=st.data(), places=PLACES)
    def close(self, data: st.DataObject, places: list[tuple[str, int]]) -> None:
        """The last request of a session."""
        version = self.fetch_version
        self._fetch(data, self.session, FINAL, version, topics=self._topics(data, places, version))

    def teardown(self) -> None:
        """No session stays."""
        request = m.FetchRequest(max_wait_ms=0, min_bytes=0, session_id=self.session, session_epoch=FINAL)
        self.pair.each(ApiKey.FETCH, self.fetch_version, request)
        super().teardown()
