"""UpdateFeatures: all updates of a request or none, with the words of Kafka's controller."""

from controller.admin_facts import FeaturesFinalized
from controller.commands import Done, FeatureUpdate, UpdateFeatures
from controller.decide.context import Context, Decision
from controller.features import METADATA_VERSION, SUPPORTED
from controller.state import ClusterState
from protocol.errors import ErrorCode, KafkaError

UPGRADE, SAFE_DOWNGRADE, UNSAFE_DOWNGRADE = 1, 2, 3


def update_features(state: ClusterState, command: UpdateFeatures, context: Context) -> Decision:
    """Levels that change become one fact."""
    changed = []
    for update in command.updates:
        problem = _problem(state, update)
        if problem is not None:
            raise KafkaError(
                ErrorCode.INVALID_UPDATE_VERSION,
                "The update failed for all features since the following feature had an error: Invalid update version "
                f"{update.level} for feature {update.name}. {problem}",
            )
        if update.level != state.features.get(update.name, 0):
            changed.append((update.name, update.level))
    facts = (FeaturesFinalized(tuple(changed)),) if changed and not command.validate_only else ()
    return Decision(facts, Done())


def _problem(state: ClusterState, update: FeatureUpdate) -> str | None:
    name, level, upgrade_type = update
    supported = SUPPORTED.get(name)
    if upgrade_type not in (UPGRADE, SAFE_DOWNGRADE, UNSAFE_DOWNGRADE):
        return "The controller does not support the given upgrade type."
    if level < 0:
        return "A feature version cannot be less than 0."
    who = f"Local controller {state.controller_node}"
    if supported is None:
        return f"{who} does not support this feature." if level else f"Feature {name} not found."
    if not supported.least <= level <= supported.most:
        return f"{who} only supports versions {supported.least}-{supported.most}"
    now = state.features.get(name, 0)
    if level < now and upgrade_type == UPGRADE:
        return (
            "Can't downgrade the version of this feature without setting the upgrade type to either safe or unsafe "
            "downgrade."
        )
    if level > now and upgrade_type != UPGRADE:
        return "Can't downgrade to a newer version."
    assert name != METADATA_VERSION or level == now
    return None
