"""Who may come in, and what he may do: SCRAM credentials, access lists, quotas, as facts made them."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from controller.admin_facts import (
    Acl,
    AclsCreated,
    AclsDeleted,
    QuotasChanged,
    ScramCredentialRemoved,
    ScramCredentialSet,
)

Entity = tuple[tuple[str, str | None], ...]
"""(Entity type, name) by type; name None: the default of the type."""


class Credential(NamedTuple):
    """What a server keeps of a password."""

    salt: bytes
    stored_key: bytes
    server_key: bytes
    iterations: int


@dataclass(slots=True)
class AccessTable:
    """`scram` by user and number of the mechanism; `acls` in the order of their creation; `quotas` by entity."""

    scram: dict[str, dict[int, Credential]] = field(default_factory=dict)
    acls: dict[Acl, None] = field(default_factory=dict)
    quotas: dict[Entity, dict[str, float]] = field(default_factory=dict)

    def set_credential(self, fact: ScramCredentialSet) -> None:
        """A new one, or in the place of an older one."""
        credential = Credential(fact.salt, fact.stored_key, fact.server_key, fact.iterations)
        self.scram.setdefault(fact.user, {})[fact.mechanism] = credential

    def remove_credential(self, fact: ScramCredentialRemoved) -> None:
        """It is gone."""
        del self.scram[fact.user][fact.mechanism]
        if not self.scram[fact.user]:
            del self.scram[fact.user]

    def create_acls(self, fact: AclsCreated) -> None:
        """They are in the list."""
        self.acls.update(dict.fromkeys(fact.acls))

    def delete_acls(self, fact: AclsDeleted) -> None:
        """They are not."""
        for acl in fact.acls:
            del self.acls[acl]

    def change_quotas(self, fact: QuotasChanged) -> None:
        """Values of one entity."""
        values = self.quotas.setdefault(fact.entity, {})
        for key, value in fact.changes:
            if value is None:
                values.pop(key, None)
            else:
                values[key] = value
        if not values:
            del self.quotas[fact.entity]

    def scram_rows(self) -> Iterator[list[Any]]:
        """Snapshot rows of the credentials."""
        for user, mechanisms in self.scram.items():
            for mechanism, credential in mechanisms.items():
                yield [user, mechanism, *credential]

    def load_scram(self, row: tuple[Any, ...]) -> None:
        """Adds a credential from its snapshot row."""
        user, mechanism, *rest = row
        self.scram.setdefault(user, {})[mechanism] = Credential(*rest)

    def acl_rows(self) -> Iterator[list[Any]]:
        """Snapshot rows of the access list."""
        for acl in self.acls:
            yield [*acl]

    def load_acl(self, row: tuple[Any, ...]) -> None:
        """Adds an entry of the access list from its snapshot row."""
        self.acls[Acl(*row)] = None

    def quota_rows(self) -> Iterator[list[Any]]:
        """Snapshot rows of the quotas."""
        for entity, values in self.quotas.items():
            yield [entity, list(values.items())]

    def load_quotas(self, row: tuple[Any, ...]) -> None:
        """Adds the quotas of an entity from their snapshot row."""
        entity, values = row
        self.quotas[entity] = dict(values)
