"""Steps of those who run the cluster: reassignments, elections, quotas, credentials, features, what the cluster is."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import rule

from protocol import messages as m
from protocol.apis import ApiKey
from tests.differential.machine import NAMES, Machine

SHORT = st.sampled_from(NAMES)
PARTITIONS = st.lists(st.sampled_from([0, 0, 1, 9]), min_size=1, max_size=2, unique=True)
QUOTAS = ("producer_byte_rate", "consumer_byte_rate", "request_percentage", "controller_mutation_rate", "no_such_quota")
FEATURES = ("transaction.version", "group.version", "metadata.version", "no.such.feature")


class AdminSteps(Machine):
    """The rest of the admin APIs."""

    @rule(data=st.data(), short=SHORT, partitions=PARTITIONS, kind=st.sampled_from([0, 0, 1, 7]))
    def elect(self, data: st.DataObject, short: str, partitions: list[int], kind: int) -> None:
        """The preferred leader, which leads already: there is one broker."""
        version = self.version(data, ApiKey.ELECT_LEADERS)
        topic = m.ElectLeadersRequest.TopicPartitions(topic=self.name(short), partitions=partitions)
        request = m.ElectLeadersRequest(
            election_type=kind if version else 0, topic_partitions=[topic], timeout_ms=10_000
        )
        self.ask(ApiKey.ELECT_LEADERS, version, request)

    @rule(data=st.data(), short=SHORT, partitions=PARTITIONS, to=st.sampled_from([[1], None, [7], [], [1, 1], [-1]]))
    def reassign(self, data: st.DataObject, short: str, partitions: list[int], to: list[int] | None) -> None:
        """To the broker where it is, to none, or back from nowhere."""
        part = m.AlterPartitionReassignmentsRequest.ReassignablePartition
        topic = m.AlterPartitionReassignmentsRequest.ReassignableTopic(
            name=self.name(short), partitions=[part(partition_index=index, replicas=to) for index in partitions]
        )
        version = self.version(data, ApiKey.ALTER_PARTITION_REASSIGNMENTS)
        request = m.AlterPartitionReassignmentsRequest(topics=[topic], timeout_ms=10_000)
        self.ask(ApiKey.ALTER_PARTITION_REASSIGNMENTS, version, request)

    @rule(data=st.data(), short=SHORT, partitions=PARTITIONS)
    def list_reassignments(self, data: st.DataObject, short: str, partitions: list[int]) -> None:
        """None is under way."""
        topic = m.ListPartitionReassignmentsRequest.ListPartitionReassignmentsTopics
        wanted = data.draw(st.sampled_from([None, [topic(name=self.name(short), partition_indexes=partitions)]]))
        request = m.ListPartitionReassignmentsRequest(topics=wanted, timeout_ms=10_000)
        self.ask(ApiKey.LIST_PARTITION_REASSIGNMENTS, 0, request)

    def _entity(self, data: st.DataObject) -> list[tuple[str, str | None]]:
        user, client = ("user", self.name("someone")), ("client-id", self.name("app"))
        return data.draw(
            st.sampled_from(
                [[user], [client], [user, client], [("user", None), client], [user, user], [("dog", "x")], []]
            )
        )

    @rule(data=st.data())
    def alter_quotas(self, data: st.DataObject) -> None:
        """Of users and clients; keys and values that are none, too."""
        entry, entity = m.AlterClientQuotasRequest.EntryData, m.AlterClientQuotasRequest.EntityData
        operation = m.AlterClientQuotasRequest.OpData
        value = data.draw(st.sampled_from([1000.0, 50.0, 0.5, 0.0, -1.0]))
        who = self._entity(data)
        asked = entry(
            entity=[entity(entity_type=kind, entity_name=name) for kind, name in who],
            ops=[operation(key=data.draw(st.sampled_from(QUOTAS)), value=value, remove=data.draw(st.booleans()))],
        )
        only = data.draw(st.sampled_from([False, False, True]))
        version = self.version(data, ApiKey.ALTER_CLIENT_QUOTAS)
        request = m.AlterClientQuotasRequest(entries=[asked], validate_only=only)
        self.ask(ApiKey.ALTER_CLIENT_QUOTAS, version, request)
        self._follow(ApiKey.DESCRIBE_CLIENT_QUOTAS, self._quotas_of([("user", 0, self.name("someone"))]))
        self._follow(ApiKey.DESCRIBE_CLIENT_QUOTAS, self._quotas_of([("client-id", 0, self.name("app"))]))

    def _quotas_of(self, components: list[tuple[str, int, str | None]], *, strict: bool = False) -> Any:
        component = m.DescribeClientQuotasRequest.ComponentData
        return m.DescribeClientQuotasRequest(
            components=[component(entity_type=kind, match_type=how, match=name) for kind, how, name in components],
            strict=strict,
        )

    @rule(data=st.data(), strict=st.booleans())
    def describe_quotas(self, data: st.DataObject, strict: bool) -> None:
        """By name, by default, by being there."""
        user, client = self.name("someone"), self.name("app")
        components = data.draw(
            st.sampled_from(
                [
                    [("user", 0, user)],
                    [("client-id", 0, client)],
                    [("user", 0, user), ("client-id", 0, client)],
                    [("user", 0, user), ("client-id", 2, None)],
                    [("user", 0, user), ("user", 0, user)],
                    [("dog", 2, None)],
                    [("user", 7, None)],
                ]
            )
        )
        version = self.version(data, ApiKey.DESCRIBE_CLIENT_QUOTAS)
        self.ask(ApiKey.DESCRIBE_CLIENT_QUOTAS, version, self._quotas_of(components, strict=strict))

    @rule(data=st.data(), mechanism=st.sampled_from([1, 2, 0, 9]), iterations=st.sampled_from([4096, 4096, 10, 10**6]))
    def alter_credentials(self, data: st.DataObject, mechanism: int, iterations: int) -> None:
        """Of a user: new ones, others, none."""
        name = data.draw(st.sampled_from([self.name("user"), self.name("user"), ""]))
        deletion = m.AlterUserScramCredentialsRequest.ScramCredentialDeletion(name=name, mechanism=mechanism)
        upsertion = m.AlterUserScramCredentialsRequest.ScramCredentialUpsertion(
            name=name, mechanism=mechanism, iterations=iterations, salt=b"salt" * 4, salted_password=b"secret" * 6
        )
        deletions, upsertions = data.draw(
            st.sampled_from([([deletion], []), ([], [upsertion]), ([], [upsertion]), ([], [upsertion, upsertion])])
        )
        request = m.AlterUserScramCredentialsRequest(deletions=deletions, upsertions=upsertions)
        self.ask(ApiKey.ALTER_USER_SCRAM_CREDENTIALS, 0, request)
        self._follow(ApiKey.DESCRIBE_USER_SCRAM_CREDENTIALS, self._credentials_of([self.name("user")]))

    @rule(names=st.sampled_from([["user"], ["user", "user"], ["nobody"], ["user", "nobody"]]))
    def describe_credentials(self, names: list[str]) -> None:
        """Which mechanisms a user has."""
        request = self._credentials_of([self.name(name) for name in names])
        self.ask(ApiKey.DESCRIBE_USER_SCRAM_CREDENTIALS, 0, request)

    def _credentials_of(self, names: list[str]) -> Any:
        user = m.DescribeUserScramCredentialsRequest.UserName
        return m.DescribeUserScramCredentialsRequest(users=[user(name=name) for name in names])

    @rule(data=st.data(), feature=st.sampled_from(FEATURES), level=st.sampled_from([0, 1, 2, 99, -1]))
    def update_features(self, data: st.DataObject, feature: str, level: int) -> None:
        """Only to see whether it could be done: what is finalized counts for the other sequences."""
        version = self.version(data, ApiKey.UPDATE_FEATURES, first=1)
        update = m.UpdateFeaturesRequest.FeatureUpdateKey(
            feature=feature, max_version_level=level, upgrade_type=data.draw(st.sampled_from([1, 1, 2, 3, 0]))
        )
        request = m.UpdateFeaturesRequest(feature_updates=[update], validate_only=True, timeout_ms=10_000)
        self.ask(ApiKey.UPDATE_FEATURES, version, request)

    @rule(data=st.data(), endpoints=st.sampled_from([1, 1, 2, 7]))
    def describe_cluster(self, data: st.DataObject, endpoints: int) -> None:
        """Its brokers; controllers are not asked here."""
        version = self.version(data, ApiKey.DESCRIBE_CLUSTER)
        request = m.DescribeClusterRequest(
            include_cluster_authorized_operations=data.draw(st.booleans()),
            endpoint_type=endpoints if version >= 1 else 1,
            include_fenced_brokers=version >= 2 and data.draw(st.booleans()),
        )
        self.ask(ApiKey.DESCRIBE_CLUSTER, version, request)

    @rule(broker=st.sampled_from([7, -1, 10**6]))
    def unregister(self, broker: int) -> None:
        """Brokers that never were."""
        self.ask(ApiKey.UNREGISTER_BROKER, 0, m.UnregisterBrokerRequest(broker_id=broker))

    @rule(data=st.data(), topic=st.sampled_from(["__cluster_metadata"] * 3 + ["red", ""]), partition=PARTITIONS)
    def describe_quorum(self, data: st.DataObject, topic: str, partition: list[int]) -> None:
        """Who leads the log of the metadata; of other topics nothing is told."""
        part = m.DescribeQuorumRequest.PartitionData
        asked = m.DescribeQuorumRequest.TopicData(
            topic_name=topic, partitions=[part(partition_index=index) for index in partition]
        )
        topics = data.draw(st.sampled_from([[asked], [asked], [asked], []]))
        version = self.version(data, ApiKey.DESCRIBE_QUORUM)
        self.ask(ApiKey.DESCRIBE_QUORUM, version, m.DescribeQuorumRequest(topics=topics))

    @rule(data=st.data(), short=SHORT, partitions=PARTITIONS)
    def move_to_directory(self, data: st.DataObject, short: str, partitions: list[int]) -> None:
        """To one that there is not."""
        topic = m.AlterReplicaLogDirsRequest.AlterReplicaLogDirTopic(name=self.name(short), partitions=partitions)
        directory = m.AlterReplicaLogDirsRequest.AlterReplicaLogDir(path="/nowhere", topics=[topic])
        version = self.version(data, ApiKey.ALTER_REPLICA_LOG_DIRS)
        self.ask(ApiKey.ALTER_REPLICA_LOG_DIRS, version, m.AlterReplicaLogDirsRequest(dirs=[directory]))

    def _follow(self, api: ApiKey, request: Any) -> None:
        """Until Kafka's broker shows what its controller has decided, or never will."""

        def alike() -> bool:
            kafka, ours = self.pair.each(api, min(self.pair.versions[api]), request)
            return bool(repr(kafka) == repr(ours))

        self.follow(alike)
