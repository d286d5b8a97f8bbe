import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.lang.reflect.Proxy;
import java.time.Duration;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Optional;
import java.util.Properties;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutionException;
import org.apache.kafka.clients.admin.*;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.ElectionType;
import org.apache.kafka.common.TopicCollection;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.TopicPartitionReplica;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.acl.AccessControlEntry;
import org.apache.kafka.common.acl.AclBinding;
import org.apache.kafka.common.acl.AclBindingFilter;
import org.apache.kafka.common.acl.AclOperation;
import org.apache.kafka.common.acl.AclPermissionType;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.BrokerIdNotRegisteredException;
import org.apache.kafka.common.errors.ElectionNotNeededException;
import org.apache.kafka.common.errors.GroupIdNotFoundException;
import org.apache.kafka.common.errors.LogDirNotFoundException;
import org.apache.kafka.common.errors.NoReassignmentInProgressException;
import org.apache.kafka.common.errors.UnknownTopicOrPartitionException;
import org.apache.kafka.common.errors.UnsupportedVersionException;
import org.apache.kafka.common.quota.ClientQuotaAlteration;
import org.apache.kafka.common.quota.ClientQuotaEntity;
import org.apache.kafka.common.quota.ClientQuotaFilter;
import org.apache.kafka.common.resource.PatternType;
import org.apache.kafka.common.resource.ResourcePattern;
import org.apache.kafka.common.resource.ResourceType;

/** Every method of the admin client: `java AdminCalls BOOTSTRAP`; prints "passed" at the end. */
public class AdminCalls {
    static final String TOPIC = "admin";
    static final TopicPartition FIRST = new TopicPartition(TOPIC, 0);
    static final Set<String> called = new TreeSet<>();
    static String bootstrap;

    public static void main(String[] arguments) throws Exception {
        bootstrap = arguments[0];
        try (Admin real = Admin.create(properties())) {
            Admin admin = (Admin) Proxy.newProxyInstance(
                    AdminCalls.class.getClassLoader(), new Class<?>[] {Admin.class}, (proxy, method, values) -> {
                        called.add(method.getName());
                        try {
                            return method.invoke(real, values);
                        } catch (InvocationTargetException error) {
                            throw error.getCause();
                        }
                    });
            topics(admin);
            configs(admin);
            places(admin);
            groups(admin);
            transactions(admin);
            access(admin);
            cluster(admin);
            refused(admin);
            admin.close(Duration.ofSeconds(10));
        }
        Set<String> missing = new TreeSet<>();
        for (Method method : Admin.class.getMethods()) {
            if (Modifier.isAbstract(method.getModifiers()) && !called.contains(method.getName())) {
                missing.add(method.getName());
            }
        }
        check(missing.isEmpty(), missing);
        System.out.println("passed");
    }

    static Properties properties() {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", bootstrap);
        properties.put("key.deserializer", "org.apache.kafka.common.serialization.StringDeserializer");
        properties.put("value.deserializer", "org.apache.kafka.common.serialization.StringDeserializer");
        properties.put("key.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        properties.put("value.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        return properties;
    }

    static void check(boolean holds, Object what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }

    static void same(Object got, Object wanted) {
        check(Objects.equals(got, wanted), "got " + got + ", wanted " + wanted);
    }

    static void fails(Class<? extends Throwable> kind, Callable<?> call) throws Exception {
        try {
            Object got = call.call();
            throw new AssertionError("got " + got + ", wanted " + kind.getSimpleName());
        } catch (ExecutionException error) {
            check(kind.isInstance(error.getCause()), error.getCause());
        }
    }

    static void topics(Admin admin) throws Exception {
        admin.createTopics(List.of(new NewTopic(TOPIC, 2, (short) 1))).all().get();
        admin.createPartitions(Map.of(TOPIC, NewPartitions.increaseTo(3))).all().get();
        check(admin.listTopics().names().get().contains(TOPIC), "listed");
        same(admin.describeTopics(List.of(TOPIC)).allTopicNames().get().get(TOPIC).partitions().size(), 3);
        try (KafkaProducer<String, String> producer = new KafkaProducer<>(properties())) {
            for (int i = 0; i < 10; i++) {
                producer.send(new ProducerRecord<>(TOPIC, 0, null, "v" + i));
            }
        }
        same(admin.listOffsets(Map.of(FIRST, OffsetSpec.latest())).all().get().get(FIRST).offset(), 10L);
        same(admin.deleteRecords(Map.of(FIRST, RecordsToDelete.beforeOffset(2))).lowWatermarks().get(FIRST).get()
                .lowWatermark(), 2L);
    }

    static void configs(Admin admin) throws Exception {
        ConfigResource topic = new ConfigResource(ConfigResource.Type.TOPIC, TOPIC);
        admin.incrementalAlterConfigs(Map.of(topic, List.of(
                new AlterConfigOp(new ConfigEntry("retention.ms", "5000000"), AlterConfigOp.OpType.SET)))).all().get();
        same(admin.describeConfigs(List.of(topic)).all().get().get(topic).get("retention.ms").value(), "5000000");
        ConfigResource group = new ConfigResource(ConfigResource.Type.GROUP, "configured");
        admin.incrementalAlterConfigs(Map.of(group, List.of(new AlterConfigOp(
                new ConfigEntry("consumer.session.timeout.ms", "50000"), AlterConfigOp.OpType.SET)))).all().get();
        Collection<ConfigResource> found = admin.listConfigResources().all().get();
        check(found.contains(group) && found.contains(topic), found);
        same(admin.listConfigResources(Set.of(ConfigResource.Type.GROUP), new ListConfigResourcesOptions()).all().get(),
                List.of(group));
        same(admin.listClientMetricsResources().all().get().size(), 0);

        ClientQuotaEntity entity = new ClientQuotaEntity(Map.of(ClientQuotaEntity.CLIENT_ID, "limited"));
        admin.alterClientQuotas(List.of(new ClientQuotaAlteration(
                entity, List.of(new ClientQuotaAlteration.Op("producer_byte_rate", 1000.0))))).all().get();
        same(admin.describeClientQuotas(ClientQuotaFilter.all()).entities().get(),
                Map.of(entity, Map.of("producer_byte_rate", 1000.0)));
        admin.alterClientQuotas(List.of(new ClientQuotaAlteration(
                entity, List.of(new ClientQuotaAlteration.Op("producer_byte_rate", null))))).all().get();
    }

    static void places(Admin admin) throws Exception {
        same(admin.listPartitionReassignments().reassignments().get(), Map.of());
        admin.alterPartitionReassignments(Map.of(FIRST, Optional.of(new NewPartitionReassignment(List.of(1)))))
                .all().get();
        fails(NoReassignmentInProgressException.class,
                () -> admin.alterPartitionReassignments(Map.of(FIRST, Optional.empty())).all().get());
        var elected = admin.electLeaders(ElectionType.PREFERRED, Set.of(FIRST)).partitions().get().get(FIRST);
        check(elected.get() instanceof ElectionNotNeededException, elected);
        String directory = admin.describeLogDirs(List.of(1)).allDescriptions().get().get(1).keySet().iterator().next();
        TopicPartitionReplica replica = new TopicPartitionReplica(TOPIC, 0, 1);
        same(admin.describeReplicaLogDirs(List.of(replica)).all().get().get(replica).getCurrentReplicaLogDir(),
                directory);
        admin.alterReplicaLogDirs(Map.of(replica, directory)).all().get();
        fails(LogDirNotFoundException.class, () -> admin.alterReplicaLogDirs(Map.of(replica, "/elsewhere")).all().get());
    }

    static void groups(Admin admin) throws Exception {
        Properties settings = properties();
        settings.put(ConsumerConfig.GROUP_ID_CONFIG, "group");
        settings.put(ConsumerConfig.GROUP_INSTANCE_ID_CONFIG, "one");
        settings.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
        try (KafkaConsumer<String, String> consumer = new KafkaConsumer<>(settings)) {
            consumer.subscribe(List.of(TOPIC));
            while (consumer.poll(Duration.ofSeconds(1)).isEmpty()) {
                continue;
            }
            consumer.commitSync();
        }
        same(admin.describeConsumerGroups(List.of("group")).all().get().get("group").members().size(), 1);
        same(admin.describeClassicGroups(List.of("group")).all().get().get("group").members().size(), 1);
        admin.removeMembersFromConsumerGroup("group",
                new RemoveMembersFromConsumerGroupOptions(Set.of(new MemberToRemove("one")))).all().get();
        check(admin.listGroups().all().get().stream().anyMatch(group -> group.groupId().equals("group")), "groups");
        check(admin.listConsumerGroups().all().get().stream().anyMatch(group -> group.groupId().equals("group")),
                "consumer groups");
        same(admin.listConsumerGroupOffsets("group").partitionsToOffsetAndMetadata().get().get(FIRST).offset(), 10L);
        admin.alterConsumerGroupOffsets("group", Map.of(FIRST, new OffsetAndMetadata(4, "why"))).all().get();
        same(admin.listConsumerGroupOffsets("group").partitionsToOffsetAndMetadata().get().get(FIRST),
                new OffsetAndMetadata(4, "why"));
        admin.deleteConsumerGroupOffsets("group", Set.of(FIRST)).all().get();
        check(!admin.listConsumerGroupOffsets("group").partitionsToOffsetAndMetadata().get().containsKey(FIRST), FIRST);
        admin.deleteConsumerGroups(List.of("group")).all().get();
        fails(GroupIdNotFoundException.class, () -> admin.deleteConsumerGroups(List.of("group")).all().get());
    }

    static void transactions(Admin admin) throws Exception {
        Properties settings = properties();
        settings.put("transactional.id", "tx");
        try (KafkaProducer<String, String> producer = new KafkaProducer<>(settings)) {
            producer.initTransactions();
            producer.beginTransaction();
            producer.send(new ProducerRecord<>(TOPIC, 0, null, "open")).get();
            same(admin.describeTransactions(List.of("tx")).all().get().get("tx").state(), TransactionState.ONGOING);
            check(admin.listTransactions().all().get().stream().anyMatch(one -> one.transactionalId().equals("tx")), "tx");
            ProducerState open = admin.describeProducers(List.of(FIRST)).all().get().get(FIRST).activeProducers().stream()
                    .filter(one -> one.currentTransactionStartOffset().isPresent()).findFirst().get();
            admin.abortTransaction(new AbortTransactionSpec(
                    FIRST, open.producerId(), (short) open.producerEpoch(), open.coordinatorEpoch().orElse(0)))
                    .all().get();
            admin.forceTerminateTransaction("tx").result().get();
            admin.fenceProducers(List.of("tx")).all().get();
        }
    }

    static void access(Admin admin) throws Exception {
        AclBinding binding = new AclBinding(new ResourcePattern(ResourceType.TOPIC, TOPIC, PatternType.LITERAL),
                new AccessControlEntry("User:u", "*", AclOperation.READ, AclPermissionType.ALLOW));
        admin.createAcls(List.of(binding)).all().get();
        same(List.copyOf(admin.describeAcls(AclBindingFilter.ANY).values().get()), List.of(binding));
        same(List.copyOf(admin.deleteAcls(List.of(binding.toFilter())).all().get()), List.of(binding));
        admin.alterUserScramCredentials(List.of(new UserScramCredentialUpsertion(
                "u", new ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096), "secret"))).all().get();
        same(admin.describeUserScramCredentials().all().get().get("u").credentialInfos(),
                List.of(new ScramCredentialInfo(ScramMechanism.SCRAM_SHA_256, 4096)));
        admin.alterUserScramCredentials(List.of(
                new UserScramCredentialDeletion("u", ScramMechanism.SCRAM_SHA_256))).all().get();
    }

    static void cluster(Admin admin) throws Exception {
        same(admin.describeCluster().nodes().get().size(), 1);
        same(admin.describeFeatures().featureMetadata().get().finalizedFeatures().get("transaction.version")
                .maxVersionLevel(), (short) 2);
        admin.updateFeatures(Map.of("transaction.version", new FeatureUpdate((short) 2, FeatureUpdate.UpgradeType.UPGRADE)),
                new UpdateFeaturesOptions()).all().get();
        same(admin.describeMetadataQuorum().quorumInfo().get().leaderId(), 1);
        fails(BrokerIdNotRegisteredException.class, () -> admin.unregisterBroker(7).all().get());
        check(!admin.metrics().isEmpty(), "the client's own");
        admin.deleteTopics(TopicCollection.ofTopicNames(List.of(TOPIC))).all().get();
    }

    /** What is not advertised: refused by the client itself, at once. */
    static void refused(Admin admin) throws Exception {
        Class<UnsupportedVersionException> unsupported = UnsupportedVersionException.class;
        fails(unsupported, () -> admin.createDelegationToken().delegationToken().get());
        fails(unsupported, () -> admin.renewDelegationToken(new byte[1]).expiryTimestamp().get());
        fails(unsupported, () -> admin.expireDelegationToken(new byte[1]).expiryTimestamp().get());
        fails(unsupported, () -> admin.describeDelegationToken().delegationTokens().get());
        fails(unsupported, () -> admin.addRaftVoter(2, Uuid.randomUuid(), Set.of()).all().get());
        fails(unsupported, () -> admin.removeRaftVoter(1, Uuid.randomUuid()).all().get());
        Throwable untold = null;
        try {
            admin.clientInstanceId(Duration.ofSeconds(5));
        } catch (RuntimeException error) {
            untold = error;
        }
        check(untold != null, "no telemetry");
        admin.registerMetricForSubscription(null);
        admin.unregisterMetricFromSubscription(null);
        String group = "kind";
        fails(Throwable.class, () -> admin.describeShareGroups(List.of(group)).all().get());
        fails(Throwable.class, () -> admin.alterShareGroupOffsets(group, Map.of(FIRST, 1L)).all().get());
        fails(Throwable.class,
                () -> admin.listShareGroupOffsets(Map.of(group, new ListShareGroupOffsetsSpec())).all().get());
        fails(Throwable.class, () -> admin.deleteShareGroupOffsets(group, Set.of(TOPIC)).all().get());
        fails(Throwable.class, () -> admin.deleteShareGroups(List.of(group)).all().get());
        fails(Throwable.class, () -> admin.describeStreamsGroups(List.of(group)).all().get());
        fails(Throwable.class, () -> admin.deleteStreamsGroups(List.of(group)).all().get());
        fails(Throwable.class, () -> admin.deleteStreamsGroupOffsets(group, Set.of(FIRST)).all().get());
        admin.listStreamsGroupOffsets(Map.of(group, new ListStreamsGroupOffsetsSpec())).all().get();
        fails(UnknownTopicOrPartitionException.class,
                () -> admin.alterStreamsGroupOffsets(group, Map.of(FIRST, new OffsetAndMetadata(1))).all().get());
    }
}
