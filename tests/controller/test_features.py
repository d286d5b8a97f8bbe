"""UpdateFeatures as Kafka's controller judges it: levels, upgrade types, all or nothing."""

import pytest

from controller import commands as c
from controller import facts as f
from controller.features import NEW_CLUSTER
from controller.state import ClusterState
from protocol.errors import KafkaError
from tests.controller.builders import Cluster

UPGRADE, SAFE, UNSAFE = 1, 2, 3


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()
    made.apply(NEW_CLUSTER)
    return made


def update(cluster: Cluster, *updates: tuple[str, int, int], validate_only: bool = False) -> None:
    wanted = tuple(c.FeatureUpdate(*item) for item in updates)
    assert cluster.decide(c.UpdateFeatures(cluster.token(16), wanted, validate_only)) == c.Done()


def test_levels_go_down_and_up_and_survive_a_snapshot(cluster: Cluster) -> None:
    assert cluster.state.features == {"metadata.version": 30, "transaction.version": 2, "group.version": 1}
    update(cluster, ("transaction.version", 1, SAFE), ("group.version", 0, UNSAFE))
    assert cluster.state.features == {"metadata.version": 30, "transaction.version": 1}
    assert ClusterState.decode(cluster.state.encode()) == cluster.state
    update(cluster, ("transaction.version", 2, UPGRADE))
    assert cluster.facts == [f.FeaturesFinalized((("transaction.version", 2),))]


def test_nothing_is_written_for_what_is_so_already_or_only_asked(cluster: Cluster) -> None:
    update(cluster, ("transaction.version", 2, UPGRADE), ("metadata.version", 30, SAFE))
    assert not cluster.facts
    update(cluster, ("transaction.version", 0, SAFE), validate_only=True)
    assert not cluster.facts
    update(cluster)
    assert not cluster.facts


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (("other", 1, UPGRADE), "version 1 for feature other. Local controller 1 does not support this feature."),
        (("other", 0, UPGRADE), "version 0 for feature other. Feature other not found."),
        (("group.version", -1, UPGRADE), "A feature version cannot be less than 0."),
        (("group.version", 2, UNSAFE), "Local controller 1 only supports versions 0-1"),
        (("metadata.version", 29, SAFE), "Local controller 1 only supports versions 30-30"),
        (("group.version", 0, UPGRADE), "Can't downgrade the version of this feature without setting the upgrade type"),
        (("group.version", 1, 4), "The controller does not support the given upgrade type."),
        (("group.version", 1, 0), "The controller does not support the given upgrade type."),
    ],
)
def test_one_refusal_refuses_all(cluster: Cluster, wanted: tuple[str, int, int], words: str) -> None:
    with pytest.raises(KafkaError, match="INVALID_UPDATE_VERSION: The update failed for all features") as refused:
        update(cluster, ("transaction.version", 0, SAFE), wanted)
    assert words in (refused.value.message or "")
    assert cluster.state.features["transaction.version"] == 2


def test_a_downgrade_to_a_newer_level_is_none(cluster: Cluster) -> None:
    update(cluster, ("transaction.version", 0, SAFE))
    with pytest.raises(KafkaError, match=r"Can't downgrade to a newer version\."):
        update(cluster, ("transaction.version", 1, SAFE))


def test_features_need_format_level_3() -> None:
    cluster = Cluster(format_level=2)
    with pytest.raises(KafkaError, match="UNSUPPORTED_VERSION: UpdateFeatures needs format level 3"):
        update(cluster, ("group.version", 1, UPGRADE))
    assert cluster.state.features == {"metadata.version": 30}
    cluster.apply(f.FormatLevel(3))
    update(cluster, ("group.version", 1, UPGRADE))
    assert cluster.state.features == {"metadata.version": 30, "group.version": 1}
