"""From texts to `Settings`: the value of each key, every bound and every contradiction."""

from collections.abc import Mapping
from typing import Any, get_args

from broker.settings import FIELDS, OBJECT_BATCH_SHARE, SettingError, Settings
from controller.postgres_uri import check_uri


def parse_value(key: str, text: str) -> Any:
    """The value of `key` from its text form; SettingError says what would be accepted."""
    field = FIELDS[key]
    types = get_args(field.type) or (field.type,)
    text = text.strip()
    if not text and type(None) in types:
        return None
    if bool in types:
        if text.lower() not in ("true", "false"):
            raise SettingError(f"{key}={text}: write true or false")
        return text.lower() == "true"
    if int in types:
        try:
            return int(text.replace("_", " "))  # "1_000" is a number for Python alone
        except ValueError:
            raise SettingError(f"{key}={text}: write a whole number") from None
    if float in types:
        try:
            return float(text)
        except ValueError:
            raise SettingError(f"{key}={text}: write a number") from None
    return text


def _check_bounds(key: str, value: Any) -> None:
    bounds = FIELDS[key].metadata
    if value is None:
        return
    if bounds["one_of"] and value not in bounds["one_of"]:
        raise SettingError(f"{key}={value}: write one of {', '.join(bounds['one_of'])}")
    # Said so that what is no number ("nan") is within no bounds.
    if bounds["at_least"] is not None and not value >= bounds["at_least"]:
        raise SettingError(f"{key}={value}: write {bounds['at_least']} or more")
    if bounds["at_most"] is not None and not value <= bounds["at_most"]:
        raise SettingError(f"{key}={value}: write {bounds['at_most']} or less")


def build(values: Mapping[str, str]) -> Settings:
    """Settings from `{key: text}`, every bound and every contradiction checked."""
    settings = Settings(**{FIELDS[key].name: parse_value(key, text) for key, text in values.items()})
    check(settings)
    return settings


def check(settings: Settings) -> None:
    """Raise SettingError for the first value out of bounds or the first contradiction."""
    for key, field in FIELDS.items():
        _check_bounds(key, getattr(settings, field.name))
    bound = {listener.name for listener in settings.bound_listeners}
    told = settings.told_listeners
    if told is not None:
        for listener in told:
            if listener.name not in bound:
                raise SettingError(
                    f"advertised.listeners: {listener.name!r} is not one of listeners ({', '.join(sorted(bound))})"
                )
            if not listener.host or listener.host == "0.0.0.0" or listener.port == 0:
                raise SettingError(
                    f"advertised.listeners: {listener} cannot be connected to; write the host and port clients use"
                )
    reachable = {listener.name for listener in told} if told is not None else bound
    if settings.peer_listener not in bound & reachable:
        raise SettingError(
            f"inter.broker.listener.name: {settings.peer_listener!r} must be one of listeners"
            + (" and of advertised.listeners" if told is not None else "")
            + f" ({', '.join(sorted(bound & reachable))})"
        )
    if not {part.strip() for part in settings.log_cleanup_policy.split(",")} <= {"compact", "delete"}:
        raise SettingError(f"log.cleanup.policy={settings.log_cleanup_policy}: write delete, compact or both")
    if settings.group_min_session_timeout_ms > settings.group_max_session_timeout_ms:
        raise SettingError("group.min.session.timeout.ms is above group.max.session.timeout.ms")
    _check_consumer_groups(settings)
    if settings.tidelog_wal_bytes_max < 3 * settings.tidelog_wal_file_bytes:
        raise SettingError("tidelog.wal.bytes.max must hold at least three files of tidelog.wal.file.bytes")
    if settings.message_max_bytes > settings.batch_bytes_max("volume"):
        raise SettingError("message.max.bytes does not fit a WAL file: raise tidelog.wal.file.bytes")
    if settings.message_max_bytes > settings.batch_bytes_max("objects"):
        raise SettingError(
            f"message.max.bytes is more than 1/{OBJECT_BATCH_SHARE} of tidelog.wal.objects.bytes.max: raise that one"
        )
    if settings.tidelog_wal_objects_busy_interval_ms > settings.tidelog_wal_objects_interval_ms:
        raise SettingError(
            "tidelog.wal.objects.busy.interval.ms must not be longer than tidelog.wal.objects.interval.ms"
        )
    if settings.tidelog_tail_keep_bytes > settings.tidelog_tail_bytes_max // 2:
        raise SettingError("tidelog.tail.keep.bytes must be at most half of tidelog.tail.bytes.max")
    if settings.tidelog_controller_lease_ms > settings.tidelog_session_timeout_ms:
        raise SettingError("tidelog.controller.lease.ms must not be longer than tidelog.session.timeout.ms")
    if settings.tidelog_metadata:
        try:
            check_uri(settings.tidelog_metadata)
        except ValueError as error:
            raise SettingError(f"tidelog.metadata {error}") from None
    if settings.tidelog_http_listener and not settings.tidelog_http_listener.rpartition(":")[2].isdecimal():
        raise SettingError(f"tidelog.http.listener={settings.tidelog_http_listener}: write host:port")


def _check_consumer_groups(settings: Settings) -> None:
    """Bounds of what groups may have, and of the defaults."""
    for what in ("session.timeout", "heartbeat.interval", "assignment.interval"):
        key, low, high = (f"group.consumer.{bound}{what}.ms" for bound in ("", "min.", "max."))
        value, least, most = (getattr(settings, name.replace(".", "_")) for name in (key, low, high))
        if not least <= value <= most:
            raise SettingError(f"{key}={value} is not between {low} ({least}) and {high} ({most})")
    if settings.group_consumer_heartbeat_interval_ms >= settings.group_consumer_session_timeout_ms:
        raise SettingError("group.consumer.heartbeat.interval.ms must be less than group.consumer.session.timeout.ms")
    assignors = settings.consumer_assignors
    if not assignors or not set(assignors) <= {"uniform", "range"} or len(set(assignors)) < len(assignors):
        raise SettingError(
            f"group.consumer.assignors={settings.group_consumer_assignors}: write uniform, range or both"
        )
