"""What administrators decide beside topics: features."""

from dataclasses import dataclass
from typing import NamedTuple


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
