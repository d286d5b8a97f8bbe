"""The comparison finds what it has to find."""

from typing import Any

import pytest

from protocol import messages as m
from protocol.apis import ApiKey
from protocol.records import build_batch
from tests.differential.compare import Difference, differences
from tests.differential.values import Values


def topic(name: str, topic_id: int, *partitions: int, error: int = 0) -> Any:
    return m.MetadataResponse.MetadataResponseTopic(
        error_code=error,
        name=name,
        topic_id=bytes(15) + bytes([topic_id]),
        partitions=[
            m.MetadataResponse.MetadataResponsePartition(partition_index=index, leader_id=1, replica_nodes=[1])
            for index in partitions
        ],
    )


def metadata(kafka: Any, tidelog: Any, values: Values | None = None) -> list[str]:
    """The paths that differ."""
    request = m.MetadataRequest(topics=None)
    found = differences(ApiKey.METADATA, 12, request, kafka, tidelog, values or Values())
    return [one.path for one in found]


def answer(*topics: Any) -> Any:
    return m.MetadataResponse(topics=list(topics))


def test_the_order_of_what_has_a_name_means_nothing() -> None:
    assert metadata(answer(topic("a", 1, 0, 1), topic("b", 2, 0)), answer(topic("b", 8, 0), topic("a", 9, 1, 0))) == []


@pytest.mark.parametrize(
    ("ours", "paths"),
    [
        (answer(topic("a", 9, 0)), ["topics[a].partitions.length", "topics[a].partitions[1]"]),
        (answer(topic("a", 9, 0, 1, error=3)), ["topics[a].error_code"]),
        (answer(), ["topics.length", "topics[a]"]),
        (answer(topic("a", 9, 0, 1), topic("c", 4, 0)), ["topics.length", "topics[c]"]),
        (answer(topic("a", 0, 0, 1)), ["topics[a].topic_id"]),
        (None, ["connection"]),
    ],
)
def test_what_is_not_alike_is_named(ours: Any, paths: list[str]) -> None:
    assert metadata(answer(topic("a", 1, 0, 1)), ours) == paths


def test_values_that_each_chooses_must_be_used_alike() -> None:
    values = Values()
    assert metadata(answer(topic("a", 1, 0)), answer(topic("a", 9, 0)), values) == []
    assert metadata(answer(topic("a", 1, 0)), answer(topic("a", 9, 0)), values) == []
    assert metadata(answer(topic("a", 1, 0)), answer(topic("a", 8, 0)), values) == ["topics[a].topic_id"]
    assert metadata(answer(topic("b", 2, 0)), answer(topic("b", 9, 0)), values) == ["topics[b].topic_id"]
    asked = m.DeleteTopicsRequest(topics=[m.DeleteTopicsRequest.DeleteTopicState(topic_id=bytes(15) + b"\x01")])
    assert values.ours(asked).topics[0].topic_id == bytes(15) + b"\x09"


def members(*ids: str) -> Any:
    member = m.DescribeGroupsResponse.DescribedGroupMember
    group = m.DescribeGroupsResponse.DescribedGroup(group_id="g", members=[member(member_id=one) for one in ids])
    return m.DescribeGroupsResponse(groups=[group])


def test_one_new_id_on_each_side_is_the_same_one() -> None:
    values = Values()

    def unlike(kafka: Any, tidelog: Any) -> list[str]:
        found = differences(ApiKey.DESCRIBE_GROUPS, 5, m.DescribeGroupsRequest(), kafka, tidelog, values)
        return [one.path for one in found]

    assert unlike(members("a"), members("b")) == []
    assert unlike(members("a", "c"), members("d", "b")) == []
    assert unlike(members("a", "c"), members("d", "e")), "e is new, but a is known"
    assert unlike(members("a"), members("b", "f"))


def fetched(*batches: Any) -> Any:
    partition = m.FetchResponse.PartitionData(partition_index=0, records=b"".join(map(bytes, batches)))
    return m.FetchResponse(responses=[m.FetchResponse.FetchableTopicResponse(topic="a", partitions=[partition])])


def test_records_are_compared_but_for_the_epoch_of_their_leader() -> None:
    def unlike(kafka: Any, tidelog: Any) -> list[Difference]:
        return differences(ApiKey.FETCH, 12, m.FetchRequest(), kafka, tidelog, Values())

    records: list[Any] = [(1, b"k", b"v", ())]
    plain = build_batch(records, leader_epoch=3)
    assert unlike(fetched(plain), fetched(build_batch(records, leader_epoch=8))) == []
    assert unlike(fetched(plain), fetched(build_batch([(1, b"k", b"w", ())])))
    assert unlike(fetched(plain), fetched(plain, plain))
    assert unlike(fetched(plain, plain[:-1]), fetched(plain)) == [], "cut off by a limit of bytes"
    assert unlike(fetched(plain, plain[:5]), fetched(plain)) == []
    assert unlike(fetched(plain[:-1]), fetched(plain))
    assert unlike(fetched(plain), fetched(build_batch(records, base_offset=1)))


def test_only_what_the_table_names_is_allowed() -> None:
    def unlike(code: int, message: str | None, text: str | None) -> list[Difference]:
        made = m.CreateTopicsResponse.CreatableTopicResult
        left = m.CreateTopicsResponse(topics=[made(name="a", error_code=36, error_message=message)])
        right = m.CreateTopicsResponse(topics=[made(name="a", error_code=code, error_message=text)])
        return differences(ApiKey.CREATE_TOPICS, 5, m.CreateTopicsRequest(), left, right, Values())

    assert unlike(36, "Topic 'a' already exists.", "It is there.") == []
    assert unlike(36, None, "It is there.") == []
    assert [one.path for one in unlike(36, "Topic 'a' already exists.", None)] == ["topics[a].error_message"]
    assert [one.path for one in unlike(37, None, None)] == ["topics[a].error_code"]
