"""Error codes: those of kafka-python must be ours."""

import kafka.errors

from protocol.errors import RETRIABLE, ErrorCode, KafkaError, ProtocolError

#: Codes that kafka-python calls by an older name.
RENAMED = {-1, 0, 6, 10, 17, 39}


def test_codes_have_the_names_that_kafka_python_gives_them() -> None:
    theirs = {
        value.errno: value.message
        for value in vars(kafka.errors).values()
        if isinstance(value, type) and issubclass(value, kafka.errors.BrokerResponseError) and value.errno is not None
    }
    assert len(theirs) > 100
    for code, name in theirs.items():
        assert code in RENAMED or ErrorCode(code).name == name
    assert ErrorCode.UNKNOWN_SERVER_ERROR == -1
    assert ErrorCode.SHARE_SESSION_LIMIT_REACHED == 133 == max(ErrorCode)


def test_retriable() -> None:
    assert {ErrorCode.NOT_LEADER_OR_FOLLOWER, ErrorCode.REQUEST_TIMED_OUT, ErrorCode.KAFKA_STORAGE_ERROR} <= RETRIABLE
    assert not {ErrorCode.NONE, ErrorCode.UNKNOWN_SERVER_ERROR, ErrorCode.OFFSET_OUT_OF_RANGE} & RETRIABLE


def test_exceptions() -> None:
    error = KafkaError(ErrorCode.INVALID_REQUEST, "two batches")
    assert (error.code, error.message, str(error)) == (42, "two batches", "INVALID_REQUEST: two batches")
    assert not error.retriable
    assert str(KafkaError(ErrorCode.NOT_COORDINATOR)) == "NOT_COORDINATOR"
    assert KafkaError(ErrorCode.NOT_COORDINATOR).retriable
    assert issubclass(ProtocolError, ValueError)
