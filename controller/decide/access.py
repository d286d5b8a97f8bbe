"""Quotas, SCRAM credentials, access lists, brokers that are gone. Refusals are per item, in the words of Kafka 4.3."""

import ipaddress
import math
from collections import Counter

from controller import facts as f
from controller.commands import (
    AlterQuotas,
    AlterScram,
    CreateAcls,
    DeleteAcls,
    Done,
    QuotaAlteration,
    Result,
    Results,
    ScramAlteration,
    UnregisterBroker,
)
from controller.decide.context import Context, Decision
from controller.state import ClusterState
from protocol.errors import ErrorCode, KafkaError

USER, CLIENT_ID, IP = "user", "client-id", "ip"
LONG_KEYS = ("producer_byte_rate", "consumer_byte_rate")
DOUBLE_KEYS = ("request_percentage", "controller_mutation_rate")
IP_KEY = "connection_creation_rate"
LONG_MAX, INT_MAX = 2**63 - 1, 2**31 - 1
ACLS_MAX = 100_000
ENTITIES_MAX = 100_000
"""Bounds of what the state holds."""
USERS_MAX = 100_000


def alter_quotas(state: ClusterState, command: AlterQuotas, context: Context) -> Decision:
    """One result per entity; only differences become facts."""
    facts: list[f.Fact] = []
    results = []
    asked = [tuple(sorted(entry.entity, key=lambda item: item[0])) for entry in command.entries]
    times = Counter(asked)
    for entity, entry in zip(asked, command.entries):
        try:
            keys = [key for key, _ in entry.changes]
            if times[entity] > 1 or len(set(keys)) != len(keys):
                names = ", ".join(f"{kind}={name}" for kind, name in entity)
                raise KafkaError(
                    ErrorCode.INVALID_REQUEST,
                    f"Ignoring duplicate entity ClientQuotaEntity(entries={{{names}}})",
                )
            _check_quota(entry)
            before = state.quotas.get(entity, {})
            if not before and len(state.quotas) + len(facts) >= ENTITIES_MAX:
                raise KafkaError(ErrorCode.POLICY_VIOLATION, f"There are quotas of {ENTITIES_MAX} entities.")
        except KafkaError as error:
            results.append(Result(int(error.code), error.message))
            continue
        changed = tuple((key, value) for key, value in entry.changes if before.get(key) != value)
        if changed:
            facts.append(f.QuotasChanged(entity, changed))
        results.append(Result())
    return Decision(() if command.validate_only else tuple(facts), Results(tuple(results)))


def _check_quota(entry: QuotaAlteration) -> None:
    kinds = {kind for kind, _ in entry.entity}
    if not entry.entity:
        raise KafkaError(ErrorCode.INVALID_REQUEST, "Invalid empty client quota entity")
    for kind, name in entry.entity:
        if kind not in (USER, CLIENT_ID, IP):
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"Unhandled client quota entity type: {kind}")
        if name == "":
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"Empty {kind} not supported")
    if len(kinds) != len(entry.entity):
        raise KafkaError(ErrorCode.INVALID_REQUEST, "An entity has one name of a type")
    if IP in kinds:
        if len(kinds) > 1:
            raise KafkaError(
                ErrorCode.INVALID_REQUEST,
                "Invalid quota entity combination, IP entity shouldnot be combined with User or ClientId",
            )
        _check_address(entry.entity[0][1])
    for key, value in entry.changes:
        if value is None:  # what nobody knows may be taken away
            continue
        if key not in ((IP_KEY,) if IP in kinds else (*LONG_KEYS, *DOUBLE_KEYS)):
            raise KafkaError(ErrorCode.INVALID_REQUEST, f"Invalid configuration key {key}")
        _check_value(key, value)


def _check_address(name: str | None) -> None:
    if name is None:
        return
    try:
        ipaddress.ip_address(name)
    except ValueError:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"{name} is not a valid IP address.") from None


def _check_value(key: str, value: float) -> None:
    if math.isnan(value) or value < 0 or (value == 0 and key != IP_KEY):
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"Quota {key} must be greater than 0")
    if key in DOUBLE_KEYS:
        return
    most, name = (INT_MAX, "an INT") if key == IP_KEY else (LONG_MAX, "a LONG")
    if value > most:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"Proposed value for {key} is too large for {name}.")
    if value != math.floor(value):
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"{key} cannot be a fractional value.")


def alter_scram(state: ClusterState, command: AlterScram, context: Context) -> Decision:
    """One result per alteration. The handler has judged iterations, mechanisms and names."""
    facts: list[f.Fact] = []
    results = []
    for one in command.alterations:
        if not one.iterations:
            if one.mechanism not in state.scram.get(one.user, {}):
                why = "Attempt to delete a user credential that does not exist"
                results.append(Result(int(ErrorCode.RESOURCE_NOT_FOUND), why))
                continue
            facts.append(f.ScramCredentialRemoved(one.user, one.mechanism))
        elif one.user not in state.scram and len(state.scram) >= USERS_MAX:
            results.append(Result(int(ErrorCode.POLICY_VIOLATION), f"There are {USERS_MAX} users."))
            continue
        else:
            facts.append(_credential(one))
        results.append(Result())
    return Decision(tuple(facts), Results(tuple(results)))


def _credential(one: ScramAlteration) -> f.ScramCredentialSet:
    return f.ScramCredentialSet(one.user, one.mechanism, one.salt, one.stored_key, one.server_key, one.iterations)


def create_acls(state: ClusterState, command: CreateAcls, context: Context) -> Decision:
    """Those that are not there yet."""
    new = tuple(dict.fromkeys(acl for acl in command.acls if acl not in state.acls))
    if len(state.acls) + len(new) > ACLS_MAX:
        raise KafkaError(ErrorCode.POLICY_VIOLATION, f"The access list holds {ACLS_MAX} entries.")
    return Decision((f.AclsCreated(new),) if new else (), Done())


def delete_acls(state: ClusterState, command: DeleteAcls, context: Context) -> Decision:
    """Those that are still there."""
    gone = tuple(dict.fromkeys(acl for acl in command.acls if acl in state.acls))
    return Decision((f.AclsDeleted(gone),) if gone else (), Done())


def unregister_broker(state: ClusterState, command: UnregisterBroker, context: Context) -> Decision:
    """A node that is gone for good."""
    node_id = command.node_id
    broker = state.brokers.get(node_id)
    if broker is None:
        raise KafkaError(ErrorCode.RESOURCE_NOT_FOUND, f"Broker ID {node_id} is not currently registered")
    if broker.alive:
        raise KafkaError(ErrorCode.INVALID_REQUEST, f"Broker {node_id} is alive: stop it before it is unregistered.")
    found = [wal for wal in state.wals.values() if wal.node_id == node_id and not wal.closed]
    left = [wal for wal in found if not state.holds_nothing(wal)]
    if left:
        raise KafkaError(
            ErrorCode.INVALID_REQUEST,
            f"Broker {node_id} left a write-ahead log that was not recovered ({left[0].wal_id.hex()}): recover it or "
            "declare it lost first (`tidelog wal list`).",
        )
    return Decision((*[f.WalRetired(wal.wal_id) for wal in found], f.BrokerUnregistered(node_id)), Done())
