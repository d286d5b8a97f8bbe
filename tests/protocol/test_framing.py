"""Frames: headers of every API's versions, and headers that are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import messages as m
from protocol.apis import APIS, ApiKey
from protocol.errors import ProtocolError
from protocol.framing import (
    parse_request_header,
    parse_response_header,
    read_uvarint,
    request_frame,
    response_frame,
    response_header,
    skip_tagged_fields,
    uvarint,
)
from protocol.schema.runtime import read_varint


@given(st.sampled_from(sorted(APIS)), st.data(), st.integers(-(2**31), 2**31 - 1), st.none() | st.text(max_size=40))
def test_requests_come_back_as_they_went(key: int, data: st.DataObject, correlation: int, client: str | None) -> None:
    version = data.draw(st.integers(0, APIS[key].max_version))
    frame = request_frame(key, version, correlation, client, b"body")
    assert int.from_bytes(frame[:4]) == len(frame) - 4
    header = parse_request_header(b"x" + frame, 5, len(frame) + 1)
    assert header[:4] == (key, version, correlation, client)
    assert (b"x" + frame)[header.body :] == b"body"


@given(st.sampled_from(sorted(APIS)), st.data(), st.integers(-(2**31), 2**31 - 1))
def test_responses_come_back_as_they_went(key: int, data: st.DataObject, correlation: int) -> None:
    version = data.draw(st.integers(0, APIS[key].max_version))
    frame = response_frame(key, version, correlation, b"body")
    assert int.from_bytes(frame[:4]) == len(frame) - 4
    assert frame == response_header(key, version, correlation, 4) + b"body"
    found, body = parse_response_header(frame, key, version, 4)
    assert (found, frame[body:]) == (correlation, b"body")


def test_headers_are_those_of_the_schema() -> None:
    for key, api in APIS.items():
        for version in range(api.min_version, api.max_version + 1):
            flexible = api.request_header_v2_from is not None and version >= api.request_header_v2_from
            header = m.RequestHeader(
                request_api_key=key, request_api_version=version, correlation_id=7, client_id="client"
            )
            assert request_frame(key, version, 7, "client", b"")[4:] == header.encode(2 if flexible else 1)
            flexible = api.response_header_v1_from is not None and version >= api.response_header_v1_from
            assert response_frame(key, version, 7, b"")[4:] == m.ResponseHeader(correlation_id=7).encode(int(flexible))


def test_api_versions_answers_with_the_oldest_header() -> None:
    assert response_frame(ApiKey.API_VERSIONS, 4, 1, b"") == b"\0\0\0\4\0\0\0\1"


def test_an_unsupported_version_is_still_read() -> None:
    header = parse_request_header(b"\0\x12\x03\xe7\0\0\0\5\0\1c\1\7\2xybody")
    assert header == (ApiKey.API_VERSIONS, 999, 5, "c", 16)
    assert parse_request_header(b"\0\x03\xff\xff\0\0\0\5\xff\xffbody").api_version == -1


def test_headers_that_are_none() -> None:
    whole = request_frame(ApiKey.METADATA, 12, 1, "client", b"")[4:]
    for cut in range(len(whole)):
        with pytest.raises(ProtocolError):
            parse_request_header(whole[:cut])
        with pytest.raises(ProtocolError):
            parse_request_header(whole, 0, cut)
    with pytest.raises(ProtocolError, match="unknown api key 4"):
        parse_request_header(b"\0\4" + whole[2:])
    with pytest.raises(ProtocolError, match="UTF-8"):
        parse_request_header(b"\0\3\0\1\0\0\0\1\0\2\xc3\x28")
    with pytest.raises(ProtocolError, match="client id of 32767 bytes"):
        parse_request_header(b"\0\3\0\1\0\0\0\1\x7f\xffxx")
    with pytest.raises(ProtocolError):
        parse_response_header(b"\0\0\0", 3, 1)
    with pytest.raises(ProtocolError):
        request_frame(3, 1, 1, "x" * 40000, b"")


@given(st.binary(max_size=60))
def test_noise_is_a_header_or_a_protocol_error(noise: bytes) -> None:
    try:
        assert parse_request_header(noise).body <= len(noise)
    except ProtocolError:
        pass


@given(st.integers(0, 2**32 - 1))
def test_varints(value: int) -> None:
    encoded = uvarint(value)
    assert read_uvarint(encoded + b"x", 0, len(encoded) + 1) == (value, len(encoded))
    assert read_varint(encoded, 0) == (value, len(encoded))
    with pytest.raises(ProtocolError):
        read_uvarint(encoded, 0, len(encoded) - 1)


def test_varints_of_more_than_32_bits() -> None:
    for endless in (b"\xff\xff\xff\xff\x1f", b"\xff\xff\xff\xff\xff\x01", b"\x80" * 10):
        with pytest.raises(ProtocolError):
            read_uvarint(endless, 0, len(endless))


def test_tagged_fields_are_skipped() -> None:
    assert skip_tagged_fields(b"\2\0\1a\7\0rest", 0, 10) == 6
    for broken in (b"", b"\1", b"\1\0\5ab", b"\xff\xff\xff\xff\x0f", b"\2\0\1a"):
        with pytest.raises(ProtocolError):
            skip_tagged_fields(broken, 0, len(broken))
