"""What both S3 clients share: the meaning of an `s3://` URI, time limits, and S3's errors in the port's terms."""

import ipaddress
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

from storage.object_store import (
    Denied,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    StoreError,
    Unavailable,
)

CONNECT_TIMEOUT_S = 5
REQUEST_TIMEOUT_S = 10
"""For one attempt of a small request; bodies get more, see `timeout_s`."""
BYTES_PER_SECOND_MIN = 1024 * 1024

SINGLE_PUT_BYTES_MAX = 128 * 1024 * 1024
"""Larger bodies go in parts, in any mode. S3's own limit is 5 GiB, but an attempt that fails is repeated in whole."""
PART_BYTES = 16 * 1024 * 1024
PARTS_IN_FLIGHT = 4

_EXAMPLE = "s3://bucket/prefix?region=eu-central-1"
_OPTIONS = {"region", "endpoint", "client", "allow_http"}


class S3Location(NamedTuple):
    """Where the objects lie. `prefix` is empty or ends in `/`; `endpoint` None means AWS."""

    bucket: str
    prefix: str
    region: str | None
    endpoint: str | None
    client: str

    @property
    def tls(self) -> bool:
        return self.endpoint is None or self.endpoint.startswith("https:")

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


def parse_s3_uri(uri: str) -> S3Location:
    """`s3://bucket/prefix?region=..&endpoint=..&client=obstore|aiobotocore&allow_http=true`; all options may be absent.

    `ValueError` names the bad part and what to write instead.
    """
    shown = uri.split("?")[0]
    try:
        parts = urlsplit(uri)
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise ValueError(f"storage URI {shown!r}: {error}; write {_EXAMPLE}") from None
    if "@" in parts.netloc:
        raise ValueError("storage URI: no credentials in here; put them where the AWS command line finds them")
    if parts.fragment:
        raise ValueError(f"storage URI {shown!r}: '#' must be written %23")
    if not parts.netloc or ":" in parts.netloc:
        raise ValueError(f"storage URI {shown!r}: {parts.netloc!r} is no bucket name; write {_EXAMPLE}")
    prefix = parts.path.strip("/")
    if prefix and any(segment in {"", ".", ".."} for segment in prefix.split("/")):
        raise ValueError(f"storage URI {shown!r}: prefix {prefix!r} has an empty segment, '.' or '..'")
    if len(prefix.encode()) > 255:
        raise ValueError(f"storage URI {shown!r}: the prefix is longer than 255 bytes")
    values: dict[str, str] = {}
    for name, value in options:
        if name not in _OPTIONS:
            raise ValueError(f"storage URI {shown!r}: unknown option {name!r}; there are {', '.join(sorted(_OPTIONS))}")
        if not value or name in values:
            raise ValueError(f"storage URI {shown!r}: option {name!r} must be given once, with a value")
        values[name] = value
    endpoint = values.get("endpoint")
    if endpoint is not None:
        endpoint = _check_endpoint(shown, endpoint, values.get("allow_http", "false"))
    client = values.get("client", "obstore")
    if client not in {"obstore", "aiobotocore"}:
        raise ValueError(f"storage URI {shown!r}: client {client!r}; write client=obstore or client=aiobotocore")
    return S3Location(parts.netloc, prefix + "/" if prefix else "", values.get("region"), endpoint, client)


def _check_endpoint(shown: str, endpoint: str, allow_http: str) -> str:
    parts = urlsplit(endpoint)
    if "@" in parts.netloc:
        raise ValueError("storage URI: no credentials in here; put them where the AWS command line finds them")
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.path.strip("/") or parts.query:
        raise ValueError(f"storage URI {shown!r}: endpoint {endpoint!r}; write endpoint=https://host:port")
    if allow_http not in {"true", "false"}:
        raise ValueError(f"storage URI {shown!r}: allow_http={allow_http!r}; write true or false")
    if parts.scheme == "http" and allow_http == "false" and not _is_loopback(parts.hostname):
        raise ValueError(
            f"storage URI {shown!r}: endpoint {endpoint!r} is not encrypted; write https, or add allow_http=true"
        )
    return endpoint.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def timeout_s(size: int) -> float:
    """How long one attempt may take that moves `size` bytes."""
    return REQUEST_TIMEOUT_S + size / BYTES_PER_SECOND_MIN


def region_unknown(location: S3Location) -> str:
    """What to say when neither the URI nor the environment tells the region."""
    return f"{location}: region unknown; write ?region=... in the storage URI or set AWS_DEFAULT_REGION"


_CORRUPTED = {"BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "IncompleteBody"}
_LATE = {"RequestTimeout", "InternalError", "SlowDown", "ServiceUnavailable", "OperationAborted", "NoSuchUpload"}
_CREDENTIALS = {"ExpiredToken", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId", "SignatureDoesNotMatch"}


def error_for_status(what: str, status: int, code: str, detail: str, *, write: bool) -> StoreError:
    """S3's answer as the port's error. `code` is S3's own, empty if unknown; `what` names store, verb and key."""
    said = f"{what}: {status} {code or detail}"
    if status == 412:
        return PreconditionFailed(said)
    if code == "NoSuchBucket":
        return StoreError(f"{said}: create the bucket, or correct the storage URI")
    if code in _CORRUPTED:
        return Unavailable(f"{said}: the body was damaged on its way")
    if code in _CREDENTIALS or status in {401, 403}:
        return Denied(f"{said}: check credentials, clock and rights (get, put, delete and list of this prefix)")
    if status in {409, 429} or status >= 500 or code in _LATE:
        if status == 501:
            return StoreError(f"{said}: this store lacks an operation that tidelog needs")
        return OutcomeUnknown(said) if write else Unavailable(said)
    if status in {404, 416}:
        return NotFound(said)
    if 300 <= status < 400:
        return StoreError(f"{said}: the bucket is in another region; write ?region=... in the storage URI")
    return StoreError(f"{said}: {detail}")
