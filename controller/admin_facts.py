"""Facts of what administrators decide beside topics. Part of `controller.facts`."""

from dataclasses import dataclass
from typing import NamedTuple


class Acl(NamedTuple):
    """Who may, or may not, do what with which resource, from where. Numbers are Kafka's."""

    resource_type: int
    resource_name: str
    pattern_type: int
    principal: str
    host: str
    operation: int
    permission_type: int


@dataclass(frozen=True, slots=True)
class FeaturesFinalized:
    """From here on these features are at these levels; 0: not in force."""

    levels: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class QuotasChanged:
    """Quotas of one entity; None removes one. `entity`: (Kafka's entity type, name) by type, name None: the default."""

    entity: tuple[tuple[str, str | None], ...]
    changes: tuple[tuple[str, float | None], ...]


@dataclass(frozen=True, slots=True)
class ScramCredentialSet:
    """A user can authenticate so from here on (RFC 5802). `mechanism` is Kafka's number; no password is kept."""

    user: str
    mechanism: int
    salt: bytes
    stored_key: bytes
    server_key: bytes
    iterations: int


@dataclass(frozen=True, slots=True)
class ScramCredentialRemoved:
    """He cannot any more."""

    user: str
    mechanism: int


@dataclass(frozen=True, slots=True)
class AclsCreated:
    """These are in the list."""

    acls: tuple[Acl, ...]


@dataclass(frozen=True, slots=True)
class AclsDeleted:
    """These are not any more."""

    acls: tuple[Acl, ...]


@dataclass(frozen=True, slots=True)
class BrokerUnregistered:
    """The node, which has no session and left nothing to recover, is none of the cluster's until it registers again."""

    node_id: int
