"""What administrators decide beside topics: features, quotas, credentials, access lists, brokers that are gone."""

from dataclasses import dataclass
from typing import NamedTuple

from controller.admin_facts import Acl


class FeatureUpdate(NamedTuple):
    """`upgrade_type` is Kafka's: 1 upgrade, 2 safe downgrade, 3 unsafe downgrade."""

    name: str
    level: int
    upgrade_type: int = 1


@dataclass(frozen=True, slots=True)
class UpdateFeatures:
    """All of them or none. Answer `Done`; INVALID_UPDATE_VERSION, as Kafka's controller judges."""

    command_id: bytes
    updates: tuple[FeatureUpdate, ...]
    validate_only: bool = False


class QuotaAlteration(NamedTuple):
    """Changes of one entity: (entity type, name or None for the default); (key, value or None to remove it)."""

    entity: tuple[tuple[str, str | None], ...]
    changes: tuple[tuple[str, float | None], ...]


@dataclass(frozen=True, slots=True)
class AlterQuotas:
    """Answer `Results`, one per entity, in the order asked."""

    command_id: bytes
    entries: tuple[QuotaAlteration, ...]
    validate_only: bool = False


class ScramAlteration(NamedTuple):
    """A credential of a user: the new one, or none (`iterations` 0: remove it)."""

    user: str
    mechanism: int
    iterations: int = 0
    salt: bytes = b""
    stored_key: bytes = b""
    server_key: bytes = b""


@dataclass(frozen=True, slots=True)
class AlterScram:
    """Answer `Results`, one per alteration, in the order asked. RESOURCE_NOT_FOUND: nothing to remove."""

    command_id: bytes
    alterations: tuple[ScramAlteration, ...]


@dataclass(frozen=True, slots=True)
class CreateAcls:
    """Answer `Done`. What is there already is not created again. POLICY_VIOLATION beyond the bound of the list."""

    command_id: bytes
    acls: tuple[Acl, ...]


@dataclass(frozen=True, slots=True)
class DeleteAcls:
    """Answer `Done`, also for those that are gone."""

    command_id: bytes
    acls: tuple[Acl, ...]


@dataclass(frozen=True, slots=True)
class UnregisterBroker:
    """A node that was taken away for good leaves the list. Answer `Done`.

    RESOURCE_NOT_FOUND; INVALID_REQUEST if it has a live session, or a WAL instance that waits for its recovery.
    """

    command_id: bytes
    node_id: int


class Result(NamedTuple):
    """What became of one item; code 0 is success."""

    error_code: int = 0
    error_message: str | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """One result per item, in the order asked."""

    results: tuple[Result, ...]
