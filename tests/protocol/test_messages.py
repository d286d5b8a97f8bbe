"""The classes: defaults, equality, names, and that every API has its messages."""

import pytest

from protocol import messages as m
from protocol import schema
from protocol.apis import APIS
from protocol.errors import ProtocolError


def test_every_api_has_its_request_and_response() -> None:
    for key, api in APIS.items():
        for kind in ("Request", "Response"):
            cls = getattr(m, api.name + kind)
            assert cls.api_key == key
            assert cls.versions.start == api.min_version
            # InitProducerId has a version that Kafka does not advertise yet.
            assert cls.versions[-1] in (api.max_version, 6 if api.name == "InitProducerId" else api.max_version)


def test_headers_go_with_the_encoding() -> None:
    for api in APIS.values():
        for kind, header in (("Request", api.request_header_v2_from), ("Response", api.response_header_v1_from)):
            flexible = getattr(m, api.name + kind).flexible
            if api.name == "ApiVersions" and kind == "Response":
                assert header is None
            else:
                assert header == (max(flexible.start, api.min_version) if flexible else None), api.name


def test_defaults_are_those_of_kafka() -> None:
    assert m.MetadataRequest().topics == []
    assert m.MetadataRequest().allow_auto_topic_creation is True
    assert m.MetadataResponse.MetadataResponseTopic().topic_id == bytes(16)
    assert m.JoinGroupRequest().rebalance_timeout_ms == -1
    assert m.JoinGroupRequest().group_instance_id is None
    assert m.FetchRequest().max_bytes == 0x7FFFFFFF
    assert m.ProduceRequest.PartitionProduceData().records is None
    assert m.FetchResponse.PartitionData().diverging_epoch == m.FetchResponse.EpochEndOffset()
    assert m.OffsetFetchResponse().groups == []


def test_defaults_are_not_shared() -> None:
    m.MetadataRequest().topics.append(m.MetadataRequest.MetadataRequestTopic())  # type: ignore[union-attr]
    assert m.MetadataRequest().topics == []
    m.FetchResponse.PartitionData().diverging_epoch.epoch = 9
    assert m.FetchResponse.PartitionData().diverging_epoch.epoch == -1


def test_equality_and_repr() -> None:
    one, other = m.HeartbeatRequest(group_id="g"), m.HeartbeatRequest(group_id="g")
    assert one == other
    other.generation_id = 4
    assert one != other
    assert one != "g"
    assert repr(m.FindCoordinatorRequest(key="g")) == "FindCoordinatorRequest(key='g', key_type=0, coordinator_keys=[])"
    with pytest.raises(TypeError):
        hash(one)


def test_construction_is_by_known_keywords_only() -> None:
    with pytest.raises(TypeError):
        m.HeartbeatRequest("g")  # type: ignore[misc]
    with pytest.raises(TypeError):
        m.HeartbeatRequest(group="g")  # type: ignore[call-arg]
    with pytest.raises(AttributeError):
        m.HeartbeatRequest().group = "g"  # type: ignore[attr-defined]


def test_a_message_has_one_class() -> None:
    assert m.HeartbeatRequest is m.HeartbeatRequest
    assert "HeartbeatRequest" in dir(m)
    with pytest.raises(AttributeError, match="there is no message NoSuchRequest"):
        _ = m.NoSuchRequest  # type: ignore[attr-defined]


def test_records_of_internal_topics_know_their_type() -> None:
    of = [cls.record_type for cls in (m.OffsetCommitKey, m.GroupMetadataValue, m.TransactionLogKey, m.ShareUpdateKey)]
    assert of == [1, 2, 0, 1]
    keys = {name for name in schema.names() if schema.load(name).record_type is not None and name.endswith("Key")}
    assert {name.removesuffix("Key") + "Value" for name in keys} <= set(schema.names())
    assert m.HeartbeatRequest.record_type is None
    assert m.OffsetCommitKey.api_key is None


def test_bytes_of_a_known_message() -> None:
    """Written by hand from the protocol guide."""
    assert m.FindCoordinatorRequest(key="g", key_type=1).encode(1) == b"\0\x01g\x01"
    assert m.FindCoordinatorRequest(key="g", key_type=1).encode(3) == b"\x02g\x01\0"
    assert m.FindCoordinatorRequest(key_type=0, coordinator_keys=["g"]).encode(4) == b"\0\x02\x02g\0"
    assert m.SaslHandshakeResponse(error_code=33, mechanisms=["PLAIN"]).encode(1) == b"\0\x21\0\0\0\1\0\5PLAIN"
    with pytest.raises(ProtocolError, match="coordinator_keys is set"):
        m.FindCoordinatorRequest(coordinator_keys=["g"]).encode(1)
