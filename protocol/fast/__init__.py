"""Produce, Fetch and Metadata by hand, for the paths where the compiled codecs of `protocol.messages` cost too much.

Plain functions over tuples, so that a native module could take their place. What they accept, refuse and write is what
the compiled codecs do; the tests hold both together over every version. Fields that a version does not have are left
out without complaint, so that a handler fills in what it knows whatever the version.

Requests are parsed on the buffer they arrived in. Replies of Produce and Fetch come with length prefix and header,
those of Metadata without (`protocol.framing.response_frame` adds it).
"""

from protocol.fast.fetch import (
    FetchPart,
    FetchRequest,
    FetchResult,
    coalesce,
    encode_fetch_response,
    parse_fetch,
)
from protocol.fast.metadata import (
    MetadataBroker,
    MetadataPartition,
    MetadataRequest,
    encode_metadata_response,
    encode_metadata_topic,
    parse_metadata,
)
from protocol.fast.produce import (
    OnePart,
    ProducePart,
    ProduceRequest,
    ProduceResult,
    encode_produce_response,
    parse_produce,
    parse_usual_produce,
    success_encoder,
)
from protocol.fast.wire import NodeEndpoint, Topic

__all__ = [
    "FetchPart",
    "FetchRequest",
    "FetchResult",
    "MetadataBroker",
    "MetadataPartition",
    "MetadataRequest",
    "NodeEndpoint",
    "OnePart",
    "ProducePart",
    "ProduceRequest",
    "ProduceResult",
    "Topic",
    "coalesce",
    "encode_fetch_response",
    "encode_metadata_response",
    "encode_metadata_topic",
    "encode_produce_response",
    "parse_fetch",
    "parse_metadata",
    "parse_produce",
    "parse_usual_produce",
    "success_encoder",
]
