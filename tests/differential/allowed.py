"""Every way in which an answer of ours may differ from Apache Kafka's, with the reason. The only place for them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.differential.compare import Difference


def always(request: Any, kafka: Any, tidelog: Any) -> bool:
    """The field says nothing that can be compared."""
    return True


def both_set(request: Any, kafka: Any, tidelog: Any) -> bool:
    """Something is there on both sides, or on neither."""
    return bool(_there(kafka) and _there(tidelog))


def _there(value: Any) -> bool:
    return value is not None and value not in (-1, "")


@dataclass
class Allowed:
    """One allowed difference. `api` is a regular expression, so is `path`, without what is in brackets. `sometimes`:
    the two clocks may also show the same, or what leads to it need not happen in every run."""

    api: str
    path: str
    reason: str
    if_: Callable[[Any, Any, Any], bool] = field(default=always)
    sometimes: bool = False
    used: int = 0

    def covers(self, api: str, path: str, request: Any, kafka: Any, tidelog: Any) -> bool:
        """Whether this allows it."""
        plain = re.sub(r"\[[^\]]*\]", "", path)
        return bool(
            re.fullmatch(self.api, api) and re.fullmatch(self.path, plain) and self.if_(request, kafka, tidelog)
        )


def ours_says_more(request: Any, kafka: Any, tidelog: Any) -> bool:
    """Kafka gives no text, we do."""
    return not _there(kafka) and _there(tidelog)


def of_tidelog(request: Any, kafka: Any, tidelog: Any) -> bool:
    """A config that Kafka does not have."""
    return kafka is None and getattr(tidelog, "name", "").startswith("tidelog.")


def codec_of(request: Any) -> int:
    """Of the first batch in a Produce."""
    return int(request.topic_data[0].partition_data[0].records[22] & 7)


CLUSTER_DEFAULT = (
    "Kafka writes min.insync.replicas as a cluster-wide default when a cluster is made; it has no effect here."
)

TABLE = [
    Allowed(".*", r"(.*\.)?error_message", "The wording is ours; whether there is a message is compared.", both_set),
    Allowed(".*", r"(.*\.)?error_message", "Kafka gives no text here, we say what is wrong.", ours_says_more),
    Allowed(".*", r"(.*\.)?configs", "Configs of our own, besides all of Kafka's.", of_tidelog),
    Allowed("CreateTopics|DescribeConfigs", r".*\.configs\.length", "Configs of our own, besides all of Kafka's."),
    Allowed(
        "DescribeConfigs", r".*\.documentation", "The words are ours: they tell what a config does here.", both_set
    ),
    Allowed(
        "CreateTopics",
        r"topics\.topic_id",
        "With validate_only Kafka invents an id that nothing will ever have; we give none.",
        lambda request, kafka, tidelog: request.validate_only and tidelog == bytes(16),
    ),
    Allowed(
        "CreateTopics|DescribeConfigs",
        r".*\.configs\.(config_source|synonyms\.source)",
        CLUSTER_DEFAULT,
        lambda request, kafka, tidelog: (kafka, tidelog) == (3, 5),
    ),
    Allowed(
        "DescribeConfigs",
        r".*\.configs\.synonyms\.length",
        CLUSTER_DEFAULT,
        lambda request, kafka, tidelog: kafka == tidelog + 1,
    ),
    Allowed(
        "Produce",
        r"responses\.partition_responses\.record_errors\.batch_index_error_message",
        "The wording is ours; whether there is a message is compared.",
        both_set,
    ),
    Allowed(
        "Produce",
        r"responses\.partition_responses\.(error_code|log_start_offset)",
        "A codec that nobody knows: Kafka fails with UNKNOWN_SERVER_ERROR, we say UNSUPPORTED_COMPRESSION_TYPE, or "
        "what else is wrong.",
        lambda request, kafka, tidelog: (kafka == -1 or tidelog == -1) and codec_of(request) > 4,
    ),
    Allowed(
        "Produce",
        r"responses\.partition_responses\.error_code",
        "A batch that says it is shorter than its header makes Kafka refuse the request before it looks at topics and "
        "acks; we refuse that partition, if it is one.",
        lambda request, kafka, tidelog: kafka == 2 and tidelog in (3, 21, 100),
    ),
    Allowed(
        "JoinGroup",
        "error_code",
        "A subscription that cannot be read, in a group of KIP-848: Kafka fails with UNKNOWN_SERVER_ERROR, we say "
        "INCONSISTENT_GROUP_PROTOCOL.",
        lambda request, kafka, tidelog: kafka == -1 and len(request.protocols[0].metadata) == 2,
        sometimes=True,
    ),
    Allowed(
        "Fetch",
        r"responses\.partitions\.error_code",
        "A topic of a fetch session that was deleted: Kafka's session has kept its name and says "
        "UNKNOWN_TOPIC_OR_PARTITION, ours is asked for an id and says UNKNOWN_TOPIC_ID.",
        lambda request, kafka, tidelog: (kafka, tidelog) == (3, 100) and request.session_epoch > 0,
        sometimes=True,
    ),
    Allowed(
        "Fetch",
        r"responses\.partitions\.aborted_transactions",
        "Where no batch fits into what is left of a limit of bytes Kafka leaves the list out, ours is empty. Requests "
        "of a session do not say their limits again.",
        lambda request, kafka, tidelog: kafka is None and tidelog == [] and request.session_epoch >= 0,
        sometimes=True,
    ),
    Allowed(
        "DescribeQuorum",
        r".*\.(leader_epoch|high_watermark|log_end_offset|last_fetch_timestamp|last_caught_up_timestamp)",
        "Each has a metadata log of its own, and its own clock.",
        both_set,
    ),
    Allowed(
        "DescribeQuorum",
        r".*\.replica_directory_id",
        "Ours has no directory.",
        lambda request, kafka, tidelog: tidelog == bytes(16),
    ),
    Allowed("DescribeQuorum", r"nodes\.listeners(\..*)?", "Kafka's controllers have a listener of their own."),
    Allowed(
        "DescribeLogDirs",
        r"results\.(log_dir|total_bytes|usable_bytes)",
        "One has a directory, the other a bucket, of which nobody knows how much it takes.",
    ),
    Allowed(
        "DescribeTransactions|DescribeProducers",
        r".*\.(transaction_start_time_ms|last_timestamp)",
        "Each broker's own clock.",
        lambda request, kafka, tidelog: min(kafka, tidelog) > 0 and abs(kafka - tidelog) < 60_000,
        sometimes=True,
    ),
    Allowed(
        "ListOffsets",
        r"topics\.partitions\.timestamp",
        "Each broker's own clock, where it stamps records.",
        lambda request, kafka, tidelog: min(kafka, tidelog) > 0 and abs(kafka - tidelog) < 60_000,
        sometimes=True,
    ),
    Allowed(
        "Produce",
        r"responses\.partition_responses\.log_append_time_ms",
        "Each broker's own clock.",
        both_set,
        sometimes=True,
    ),
]


def allowed(api: str, version: int, request: Any, found: Difference) -> bool:
    """Whether a difference is in the table."""
    for one in TABLE:
        if one.covers(api, found.path, request, found.kafka, found.tidelog):
            one.used += 1
            return True
    return False
