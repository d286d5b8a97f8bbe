"""Every setting of a broker: name, type, default, bounds and meaning in one place.

Names are Kafka's `server.properties` names where Kafka has one; ours begin with `tidelog.`. In code a name is the same
words in snake case: `tidelog.wal.bytes.max` is `Settings.tidelog_wal_bytes_max`. Where values come from (flag over
environment over file over default) is `broker.settings_sources`.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
INT_MAX = 2**31 - 1
LONG_MAX = 2**63 - 1


BATCH_ROOM = 64 * KIB
"""What a WAL file needs beside the largest batch."""

WAL_KINDS = ("volume", "objects")
"""The weaker one first: what only a disk has is gone with it."""

OBJECT_BATCH_SHARE = 4
"""No batch may take more than this part of the space of a WAL of kind `objects`."""


AUTHORIZER = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"


class SettingError(ValueError):
    """A setting that cannot be used; the message names the key and what to write instead."""


class Listener(NamedTuple):
    """One `name://host:port`; an empty host means every interface, port 0 lets the system choose."""

    name: str
    security_protocol: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.name}://{host}:{self.port}"


def setting(
    default: Any,
    doc: str,
    *,
    at_least: int | None = None,
    at_most: int | None = None,
    one_of: tuple[str, ...] = (),
    dynamic: bool = False,
) -> Any:
    """A field of `Settings` with its documentation and its bounds. `dynamic`: Kafka's tools change it at run time."""
    bounds = {"at_least": at_least, "at_most": at_most, "one_of": one_of}
    return dataclasses.field(default=default, metadata={"doc": doc, "dynamic": dynamic, **bounds})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of one broker process, validated. Nothing but `change` alters one while the process lives."""

    # Identity and listeners
    node_id: int = setting(1, "The broker's id, unique in the cluster.", at_least=0)
    process_roles: str = setting(
        "broker,controller",
        "Kafka's roles. Every process is a broker; one with both roles takes control of the cluster when nobody else "
        "has it, one that is `broker` never does.",
        one_of=("broker,controller", "controller,broker", "broker"),
    )
    broker_rack: str | None = setting(None, "The rack (zone) of this broker, shown in Metadata.")
    listeners: str = setting(
        "PLAINTEXT://127.0.0.1:9092",
        "Where clients connect, `NAME://host:port` separated by commas; port 0 lets the system choose.",
    )
    advertised_listeners: str | None = setting(
        None, "What clients are told to connect to; default: `listeners` with the bound ports."
    )
    inter_broker_listener_name: str | None = setting(
        None,
        "The listener where brokers ask the controller, the same name on all of them; default: the first one.",
    )
    listener_security_protocol_map: str = setting(
        "PLAINTEXT:PLAINTEXT", "Listener name to security protocol. This version knows PLAINTEXT."
    )

    # Connections and requests
    socket_request_max_bytes: int = setting(100 * MIB, "The largest request a client may send.", at_least=1)
    socket_listen_backlog_size: int = setting(
        1024,
        "Connections waiting to be accepted. Kafka's default is 50: too few when a thousand clients reconnect.",
        at_least=1,
    )
    queued_max_request_bytes: int = setting(
        256 * MIB,
        "Bytes of requests read and not yet answered, all connections together; reading pauses beyond it. "
        "Kafka's default is no bound (-1), which is refused here.",
        at_least=1 * MIB,
    )
    queued_max_requests: int = setting(
        500, "Requests of one connection read and not yet answered; reading pauses beyond it.", at_least=1
    )
    max_connections: int = setting(
        INT_MAX, "Connections at the same time; more are closed at once.", at_least=1, dynamic=True
    )
    max_connections_per_ip: int = setting(INT_MAX, "The same for one client address.", at_least=0, dynamic=True)
    connections_max_idle_ms: int = setting(
        600_000, "A connection silent for so long is closed; -1: never.", at_least=-1
    )
    fetch_max_bytes: int = setting(55 * MIB, "The most one fetch answers, whatever the client asks.", at_least=1024)
    max_incremental_fetch_session_cache_slots: int = setting(1000, "Fetch sessions kept.", at_least=0)

    # Topics
    num_partitions: int = setting(1, "Partitions of a topic created without a number.", at_least=1)
    default_replication_factor: int = setting(
        1, "Stored and shown; durability is the WAL kind's and the bucket's, not the number of copies.", at_least=1
    )
    auto_create_topics_enable: bool = setting(True, "Create a topic when a client asks for its metadata or produces.")
    delete_topic_enable: bool = setting(True, "Whether topics may be deleted.")
    message_max_bytes: int = setting(
        1 * MIB + 12, "The largest record batch; topics override it.", at_least=0, dynamic=True
    )
    compression_type: str = setting(
        "producer",
        "Default of the topic setting; stored and shown, batches are kept as the producer sent them.",
        one_of=("producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"),
        dynamic=True,
    )
    min_insync_replicas: int = setting(
        1, "Stored and shown, without effect: see `default.replication.factor`.", at_least=1, dynamic=True
    )
    log_cleanup_policy: str = setting("delete", "Default of the topic setting `cleanup.policy`.", dynamic=True)
    log_retention_hours: int = setting(168, "How long records are kept, in hours; -1: for ever.", at_least=-1)
    log_retention_minutes: int | None = setting(None, "The same in minutes; overrides hours.", at_least=-1)
    log_retention_ms: int | None = setting(
        None, "The same in milliseconds; overrides minutes.", at_least=-1, dynamic=True
    )
    log_retention_bytes: int = setting(
        -1, "How many bytes of each partition are kept; -1: no bound.", at_least=-1, dynamic=True
    )
    log_retention_check_interval_ms: int = setting(300_000, "How often retention looks.", at_least=1)
    log_segment_bytes: int = setting(
        1 * GIB, "Default of the topic setting `segment.bytes`.", at_least=1 * MIB, dynamic=True
    )
    log_roll_hours: int = setting(168, "Default of the topic setting `segment.ms`, in hours.", at_least=1)
    log_roll_ms: int | None = setting(None, "The same in milliseconds; overrides hours.", at_least=1, dynamic=True)
    log_cleaner_enable: bool = setting(
        True, "Compact topics with `cleanup.policy=compact`. What the controller's broker has counts."
    )
    log_cleaner_dedupe_buffer_size: int = setting(
        128 * MIB,
        "Memory for the keys of one pass of compaction, 30 bytes for each; with more keys it takes several passes.",
        at_least=1 * KIB,
        dynamic=True,
    )
    log_cleaner_backoff_ms: int = setting(
        15_000,
        "How often the controller looks for what to compact; what waits for a broker goes on at once.",
        at_least=10,
        dynamic=True,
    )
    log_cleaner_min_cleanable_ratio: float = setting(
        0.5, "Default of the topic setting `min.cleanable.dirty.ratio`.", at_least=0, at_most=1, dynamic=True
    )
    log_cleaner_min_compaction_lag_ms: int = setting(
        0, "Default of the topic setting `min.compaction.lag.ms`.", at_least=0, dynamic=True
    )
    log_cleaner_max_compaction_lag_ms: int = setting(
        LONG_MAX, "Default of the topic setting `max.compaction.lag.ms`.", at_least=1, dynamic=True
    )
    log_cleaner_delete_retention_ms: int = setting(
        86_400_000, "Default of the topic setting `delete.retention.ms`.", at_least=0, dynamic=True
    )
    log_message_timestamp_type: str = setting(
        "CreateTime", "Default of the topic setting.", one_of=("CreateTime", "LogAppendTime"), dynamic=True
    )
    log_message_timestamp_before_max_ms: int = setting(
        LONG_MAX, "How old a CreateTime may be.", at_least=0, dynamic=True
    )
    log_message_timestamp_after_max_ms: int = setting(
        3_600_000, "How far ahead a CreateTime may be.", at_least=0, dynamic=True
    )

    # Groups and producers
    group_initial_rebalance_delay_ms: int = setting(3000, "How long a new group waits for more members.", at_least=0)
    group_min_session_timeout_ms: int = setting(6000, "Shortest session a member may ask for.", at_least=1)
    group_max_session_timeout_ms: int = setting(1_800_000, "Longest session a member may ask for.", at_least=1)
    group_max_size: int = setting(INT_MAX, "Members of one group of the classic protocol.", at_least=1)
    group_consumer_session_timeout_ms: int = setting(
        45_000, "Session of members of consumer groups (KIP-848); the config of a group overrides it.", at_least=1
    )
    group_consumer_min_session_timeout_ms: int = setting(45_000, "Shortest session a group may have.", at_least=1)
    group_consumer_max_session_timeout_ms: int = setting(60_000, "Longest session a group may have.", at_least=1)
    group_consumer_heartbeat_interval_ms: int = setting(
        5_000, "How often members of consumer groups send heartbeats; the config of a group overrides it.", at_least=1
    )
    group_consumer_min_heartbeat_interval_ms: int = setting(5_000, "Shortest interval a group may have.", at_least=1)
    group_consumer_max_heartbeat_interval_ms: int = setting(15_000, "Longest interval a group may have.", at_least=1)
    group_consumer_assignment_interval_ms: int = setting(
        1_000,
        "Time between two assignments of a consumer group, so that many who join make one; the config of a group "
        "overrides it.",
        at_least=0,
        dynamic=True,
    )
    group_consumer_min_assignment_interval_ms: int = setting(0, "Shortest such time a group may have.", at_least=0)
    group_consumer_max_assignment_interval_ms: int = setting(15_000, "Longest such time a group may have.", at_least=0)
    group_consumer_max_size: int = setting(INT_MAX, "Members of one consumer group.", at_least=1)
    group_consumer_assignors: str = setting(
        "uniform,range", "Assignors that members may ask for, the default one first: `uniform`, `range`."
    )
    group_consumer_migration_policy: str = setting(
        "bidirectional",
        "Whether a group with members may change from the classic protocol to consumer groups (`upgrade`), back "
        "(`downgrade`), both or neither.",
        one_of=("bidirectional", "upgrade", "downgrade", "disabled"),
    )
    group_consumer_regex_refresh_interval_ms: int = setting(
        600_000,
        "How often regular expressions of subscriptions are resolved again without a new topic.",
        at_least=10_000,
    )
    offsets_topic_num_partitions: int = setting(50, "Partitions of `__consumer_offsets`.", at_least=1)
    offsets_topic_replication_factor: int = setting(1, "Stored and shown, as for other topics.", at_least=1)
    offsets_retention_minutes: int = setting(10_080, "How long offsets of an empty group are kept.", at_least=1)
    offsets_retention_check_interval_ms: int = setting(600_000, "How often offset retention looks.", at_least=1)
    offset_metadata_max_bytes: int = setting(4096, "The longest metadata string of a committed offset.", at_least=0)
    producer_id_expiration_ms: int = setting(
        86_400_000, "Idempotence state of a silent producer is kept so long.", at_least=1, dynamic=True
    )
    producer_id_expiration_check_interval_ms: int = setting(
        600_000, "How often silent producers are looked for.", at_least=1
    )
    transactional_id_expiration_ms: int = setting(
        7 * 24 * 3600 * 1000,
        "A transactional id that nobody uses and that has no transaction is forgotten after this.",
        at_least=1,
    )
    transaction_max_timeout_ms: int = setting(
        15 * 60 * 1000, "The longest transaction timeout a producer may ask for.", at_least=1
    )
    transaction_state_log_num_partitions: int = setting(50, "Partitions of `__transaction_state`.", at_least=1)
    transaction_state_log_replication_factor: int = setting(1, "Stored and shown, as for other topics.", at_least=1)
    transaction_abort_timed_out_transaction_cleanup_interval_ms: int = setting(
        10_000, "How often transactions beyond their timeout are looked for, to be aborted.", at_least=1
    )
    transaction_remove_expired_transaction_cleanup_interval_ms: int = setting(
        3_600_000, "How often expired transactional ids are looked for.", at_least=1
    )
    add_partitions_to_txn_retry_backoff_ms: int = setting(
        20,
        "How soon a partition is added again to a transaction whose predecessor is just being completed.",
        at_least=1,
    )
    add_partitions_to_txn_retry_backoff_max_ms: int = setting(
        100, "How long that is tried, or its completion waited for, before the producer hears of it.", at_least=0
    )

    quota_window_num: int = setting(
        11, "Quotas of clients: windows that a rate is measured over, the present one included.", at_least=2
    )
    quota_window_size_seconds: int = setting(1, "How long one of them is.", at_least=1)
    controller_quota_window_num: int = setting(
        11, "Quotas of mutations (`controller_mutation_rate`): so many windows' worth may be used at once.", at_least=1
    )
    controller_quota_window_size_seconds: int = setting(1, "How long one of them is.", at_least=1)

    # Security
    authorizer_class_name: str = setting(
        "",
        "Empty: access lists are refused as in Kafka without an authorizer. "
        "`org.apache.kafka.metadata.authorizer.StandardAuthorizer`: they are stored and shown, and **not enforced**: "
        "this version authenticates nobody.",
        one_of=("", AUTHORIZER),
    )

    # Storage
    tidelog_data_dir: str = setting(
        "./tidelog-data", "Base of the two defaults below; a broker stores nothing else in it."
    )
    tidelog_storage: str | None = setting(
        None,
        "The bucket: `s3://bucket/prefix?region=...&endpoint=...`, `file:PATH` or `memory:` (lost at exit); "
        "default `file:<tidelog.data.dir>/bucket`. Credentials come from the standard AWS chain.",
    )
    tidelog_metadata: str = setting(
        "",
        "Where the metadata log is; empty: in the bucket. `postgresql://user@host:port/database` with PostgreSQL's "
        "usual options (`sslmode=verify-full`, `sslrootcert=PATH`, `passfile=PATH`); the password comes from "
        "`PGPASSWORD` or a passfile. The same for all brokers, and for ever: a cluster's log does not move.",
    )
    tidelog_wal: str = setting(
        "volume",
        "WAL kind of topics that do not name one: `volume` (a disk, one sync per group) or `objects` (the bucket).",
        one_of=WAL_KINDS,
    )
    tidelog_internal_wal: str | None = setting(
        None, "WAL kind of internal topics; default: the strongest kind that any topic uses.", one_of=WAL_KINDS
    )
    tidelog_wal_dir: str | None = setting(
        None,
        "Root of the WAL instances of this machine; default `<tidelog.data.dir>/wal`. Put it on the fastest disk. "
        "No disk is touched if this is not set and neither `tidelog.wal` nor `tidelog.internal.wal` is `volume`.",
    )
    tidelog_wal_bytes_max: int = setting(4 * GIB, "Disk the WAL may use; full means producers wait.", at_least=4 * MIB)
    tidelog_wal_file_bytes: int = setting(64 * MIB, "Size of one WAL file.", at_least=1 * MIB, at_most=1 * GIB)
    tidelog_wal_objects_interval_ms: int = setting(
        250, "Kind `objects`: time between two PUTs of little data; the first one after idle does not wait.", at_least=1
    )
    tidelog_wal_objects_busy_interval_ms: int = setting(
        100, "The same once `tidelog.wal.objects.busy.bytes` are waiting.", at_least=1
    )
    tidelog_wal_objects_busy_bytes: int = setting(64 * KIB, "See above.", at_least=1)
    tidelog_wal_objects_group_bytes: int = setting(
        4 * MIB, "As much is put at once, without waiting.", at_least=64 * KIB, at_most=64 * MIB
    )
    tidelog_wal_objects_in_flight_max: int = setting(8, "PUTs at the same time.", at_least=1, at_most=64)
    tidelog_wal_objects_bytes_max: int = setting(
        1 * GIB,
        "What may lie in the bucket as WAL and not yet in segments, per broker; full means producers wait.",
        at_least=1 * MIB,
    )
    tidelog_tail_bytes_max: int = setting(
        256 * MIB,
        "Memory for batches that are not yet in the bucket (250 bytes a batch counted beside its payload).",
        at_least=1 * MIB,
    )
    tidelog_tail_keep_bytes: int = setting(
        64 * MIB,
        "Of that, how much may hold batches that are in the bucket already, for consumers near the end.",
        at_least=0,
        dynamic=True,
    )
    tidelog_seal_bytes: int = setting(
        64 * MIB, "A log's or the tails' bytes that start an upload.", at_least=64 * KIB, dynamic=True
    )
    tidelog_seal_ms: int = setting(10_000, "Age of the oldest batch that starts an upload.", at_least=10, dynamic=True)
    tidelog_log_ranges_max: int = setting(
        20_000,
        "Ranges one log may have in the metadata; seals slow down on the way there. Merging keeps them far below.",
        at_least=16,
    )
    tidelog_merge_enable: bool = setting(
        True, "Merge ranges, and move old ones to manifests: what keeps the metadata of a log small."
    )
    tidelog_merge_fan_out: int = setting(
        16, "Neighbouring ranges of a level that become one of the next.", at_least=2, at_most=256
    )
    tidelog_merge_object_bytes: int = setting(
        64 * MIB,
        "The largest object that a merge or a compaction makes. They hold 16 MiB of it in memory.",
        at_least=64 * KIB,
        at_most=1 * GIB,
    )
    tidelog_merge_shared_ms: int = setting(
        3_600_000,
        "Ranges that share their object with those of other partitions are merged after so long, few as they may be.",
        at_least=100,
    )
    tidelog_merge_bytes_per_second: int = setting(
        32 * MIB,
        "What one broker reads and writes for merging and compaction, together; 0: no limit.",
        at_least=0,
        dynamic=True,
    )
    tidelog_merge_check_interval_ms: int = setting(
        1_000, "How often the controller looks for what to merge.", at_least=10
    )
    tidelog_log_ranges_head_max: int = setting(
        48,
        "Ranges of a partition in the metadata beyond which the oldest move to a manifest in the bucket.",
        at_least=4,
    )
    tidelog_manifest_ranges_max: int = setting(
        4_096, "Ranges in one manifest; a partition with more has several.", at_least=4, at_most=65_536
    )
    tidelog_upload_parallel: int = setting(4, "Segments uploaded at the same time.", at_least=1, at_most=64)
    tidelog_upload_bytes_per_second: int = setting(0, "Pace of uploads; 0: none.", at_least=0, dynamic=True)
    tidelog_read_cache_bytes: int = setting(64 * MIB, "Memory for blocks read back from the bucket.", at_least=1 * MIB)
    tidelog_read_parallel: int = setting(8, "Reads from the bucket at the same time.", at_least=1, at_most=256)
    tidelog_delete_grace_ms: int = setting(
        600_000, "How long an object no longer needed stays for slow readers.", at_least=0
    )
    tidelog_orphan_check_interval_ms: int = setting(
        3_600_000, "How often the bucket is searched for objects nobody names.", at_least=1
    )

    # Control
    tidelog_session_timeout_ms: int = setting(
        6000, "How long a broker may lead after its last heartbeat.", at_least=200
    )
    tidelog_controller_lease_ms: int = setting(
        3000,
        "How long a controller may grant after its last entry. A request for an entry in the bucket that has no answer "
        "after a third of it is made again.",
        at_least=100,
    )
    tidelog_balance: bool = setting(
        True,
        "Partitions move by themselves so that brokers lead as many and take as many bytes/s. "
        "What the controller's broker has counts: set it alike on all that may control.",
        dynamic=True,
    )
    tidelog_balance_interval_ms: int = setting(
        30_000, "How often the controller looks whether brokers carry alike.", at_least=100, dynamic=True
    )
    tidelog_balance_moves_max: int = setting(
        10, "Partitions that move for balance at the same time.", at_least=2, at_most=1_000, dynamic=True
    )
    tidelog_balance_threshold_percent: int = setting(
        25,
        "By how much a broker's bytes/s may exceed the mean before partitions move.",
        at_least=5,
        at_most=1_000,
        dynamic=True,
    )
    tidelog_move_bytes_max: int = setting(
        16 * MIB,
        "What partitions that move together may have to upload while they take no records; one partition moves "
        "whatever it has. Less for a bucket that takes less than some 50 MiB/s.",
        at_least=0,
        dynamic=True,
    )
    tidelog_shutdown_timeout_ms: int = setting(
        30_000,
        "A clean stop that cannot finish in this time leaves the WAL for the next start and exits with 1.",
        at_least=0,
    )
    tidelog_http_listener: str = setting(
        "127.0.0.1:9644", "Address of `/metrics`, `/livez`, `/readyz` and of operator commands; empty: none."
    )

    def change(self, name: str, value: Any) -> None:
        """Gives a dynamic setting another value: whoever reads it from now on gets that one."""
        assert FIELDS[key_of(name)].metadata["dynamic"], f"{name} is not dynamic"
        object.__setattr__(self, name, value)

    @property
    def storage_uri(self) -> str:
        """Where the bucket is."""
        return self.tidelog_storage or f"file:{self.tidelog_data_dir}/bucket"

    @property
    def wal_dir(self) -> str:
        """Where WAL instances are."""
        return self.tidelog_wal_dir or f"{self.tidelog_data_dir}/wal"

    @property
    def uses_volume(self) -> bool:
        """Whether this broker has a WAL on a disk."""
        return self.tidelog_wal_dir is not None or "volume" in (self.tidelog_wal, self.tidelog_internal_wal)

    @property
    def consumer_assignors(self) -> tuple[str, ...]:
        """Assignors of consumer groups; the first one is the default."""
        return tuple(name for part in self.group_consumer_assignors.split(",") if (name := part.strip()))

    def batch_bytes_max(self, kind: str) -> int:
        """The largest batch that a WAL of this kind can hold."""
        if kind == "objects":
            return self.tidelog_wal_objects_bytes_max // OBJECT_BATCH_SHARE - BATCH_ROOM
        return self.tidelog_wal_file_bytes - BATCH_ROOM

    @property
    def retention_ms(self) -> int:
        """Default of the topic setting `retention.ms`; -1: for ever."""
        if self.log_retention_ms is not None:
            return self.log_retention_ms
        if self.log_retention_minutes is not None:
            return self.log_retention_minutes * 60_000 if self.log_retention_minutes >= 0 else -1
        return self.log_retention_hours * 3_600_000 if self.log_retention_hours >= 0 else -1

    @property
    def segment_ms(self) -> int:
        """Default of the topic setting `segment.ms`."""
        return self.log_roll_hours * 3_600_000 if self.log_roll_ms is None else self.log_roll_ms

    @property
    def may_control(self) -> bool:
        """Whether this process may become controller."""
        return "controller" in self.process_roles

    @property
    def peer_listener(self) -> str:
        """`inter.broker.listener.name`, or the first listener that others are told of."""
        return self.inter_broker_listener_name or (self.told_listeners or self.bound_listeners)[0].name

    @property
    def bound_listeners(self) -> list[Listener]:
        """`listeners`, parsed."""
        return parse_listeners("listeners", self.listeners, self._security_protocols())

    @property
    def told_listeners(self) -> list[Listener] | None:
        """`advertised.listeners`, parsed; None when they follow `listeners`."""
        if self.advertised_listeners is None:
            return None
        return parse_listeners("advertised.listeners", self.advertised_listeners, self._security_protocols())

    def _security_protocols(self) -> dict[str, str]:
        protocols = {}
        for part in self.listener_security_protocol_map.split(","):
            name, colon, protocol = part.strip().partition(":")
            if not colon or protocol != "PLAINTEXT":
                raise SettingError(
                    f"listener.security.protocol.map={self.listener_security_protocol_map}: write NAME:PLAINTEXT; "
                    "other security protocols are not supported by this version"
                )
            protocols[name] = protocol
        return protocols


def key_of(field_name: str) -> str:
    """`tidelog_wal_dir` -> `tidelog.wal.dir`."""
    return field_name.replace("_", ".")


FIELDS: dict[str, "dataclasses.Field[Any]"] = {key_of(field.name): field for field in dataclasses.fields(Settings)}


def parse_listeners(key: str, value: str, protocols: Mapping[str, str]) -> list[Listener]:
    """Parse a comma-separated `NAME://host:port` list; SettingError names `key` and the bad part."""
    found: list[Listener] = []
    for part in (part.strip() for part in value.split(",") if part.strip()):
        name, separator, address = part.partition("://")
        host, colon, port = address.rpartition(":")
        if not separator or not colon or not port.isdecimal() or int(port) > 65_535:
            raise SettingError(f"{key}={value}: {part!r} is not NAME://host:port")
        try:
            host.encode("idna")
        except UnicodeError:
            raise SettingError(f"{key}={value}: {host!r} is no name of a host") from None
        if name not in protocols:
            raise SettingError(f"{key}={value}: listener {name!r} is not in listener.security.protocol.map")
        if any(listener.name == name for listener in found):
            raise SettingError(f"{key}={value}: listener name {name!r} is used twice")
        found.append(Listener(name, protocols[name], host.removeprefix("[").removesuffix("]"), int(port)))
    if not found:
        raise SettingError(f"{key} is empty: write at least one NAME://host:port")
    return found
