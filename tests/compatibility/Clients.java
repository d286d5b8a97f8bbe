import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Collections;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Properties;
import java.util.Set;
import java.util.TreeMap;
import java.util.TreeSet;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.Future;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.ConsumerGroupDescription;
import org.apache.kafka.clients.admin.ListConsumerGroupOffsetsSpec;
import org.apache.kafka.clients.admin.ListOffsetsResult;
import org.apache.kafka.clients.admin.MemberToRemove;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.clients.admin.RecordsToDelete;
import org.apache.kafka.clients.admin.RemoveMembersFromConsumerGroupOptions;
import org.apache.kafka.clients.admin.TopicDescription;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.consumer.OffsetAndTimestamp;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.clients.producer.RecordMetadata;
import org.apache.kafka.common.TopicCollection;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.GroupIdNotFoundException;
import org.apache.kafka.common.errors.GroupNotEmptyException;
import org.apache.kafka.common.errors.InvalidConfigurationException;
import org.apache.kafka.common.errors.InvalidPartitionsException;
import org.apache.kafka.common.errors.OffsetOutOfRangeException;
import org.apache.kafka.common.errors.RecordTooLargeException;
import org.apache.kafka.common.errors.TopicExistsException;
import org.apache.kafka.common.errors.UnknownMemberIdException;
import org.apache.kafka.common.errors.UnknownTopicIdException;
import org.apache.kafka.common.errors.UnknownTopicOrPartitionException;
import org.apache.kafka.common.header.Header;

/** Kafka's Java clients with default settings: `java Clients SCENARIO BOOTSTRAP TOPIC`; prints "passed" at the end. */
public class Clients {
    static final Duration SHORT = Duration.ofMillis(100);
    static final long BASE = 1_600_000_000_000L;
    static String bootstrap;
    static String topic;

    public static void main(String[] arguments) throws Exception {
        bootstrap = arguments[1];
        topic = arguments[2];
        switch (arguments[0]) {
            case "produce": produce(); break;
            case "consume": consume(); break;
            case "group": group(); break;
            case "cooperative": cooperative(); break;
            case "admin": admin(); break;
            case "read_to_end": readToEnd(); break;
            case "load": load(Integer.parseInt(arguments[3])); break;
            default: throw new IllegalArgumentException(arguments[0]);
        }
        System.out.println("passed");
    }

    static void check(boolean holds, Object what) {
        if (!holds) {
            throw new AssertionError(what);
        }
    }

    static void same(Object got, Object wanted) {
        check(Objects.equals(got, wanted), "got " + got + ", wanted " + wanted);
    }

    interface Action {
        void run() throws Exception;
    }

    static void fails(Class<? extends Throwable> kind, Action action) throws Exception {
        try {
            action.run();
        } catch (ExecutionException error) {
            check(kind.isInstance(error.getCause()), error.getCause());
            return;
        } catch (Exception error) {
            check(kind.isInstance(error), error);
            return;
        }
        throw new AssertionError("no " + kind.getSimpleName());
    }

    static Properties properties(String... pairs) {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", bootstrap);
        for (int i = 0; i < pairs.length; i += 2) {
            properties.put(pairs[i], pairs[i + 1]);
        }
        return properties;
    }

    static KafkaProducer<String, String> producer(String... pairs) {
        Properties properties = properties(pairs);
        properties.put("key.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        properties.put("value.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        return new KafkaProducer<>(properties);
    }

    static KafkaConsumer<String, String> consumer(String... pairs) {
        Properties properties = properties(pairs);
        properties.put("key.deserializer", "org.apache.kafka.common.serialization.StringDeserializer");
        properties.put("value.deserializer", "org.apache.kafka.common.serialization.StringDeserializer");
        return new KafkaConsumer<>(properties);
    }

    static List<ConsumerRecord<String, String>> read(KafkaConsumer<String, String> consumer, int count) {
        List<ConsumerRecord<String, String>> found = new ArrayList<>();
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(30);
        while (found.size() < count) {
            check(System.nanoTime() < deadline, found.size() + " of " + count + " records");
            for (ConsumerRecord<String, String> one : consumer.poll(SHORT)) {
                found.add(one);
            }
        }
        same(found.size(), count);
        return found;
    }

    static void create(int partitions) throws Exception {
        try (Admin admin = Admin.create(properties())) {
            admin.createTopics(List.of(new NewTopic(topic, partitions, (short) 1))).all().get();
        }
    }

    /** acks, codecs, headers, null keys and values, timestamps, partitions by key, a record that is too large. */
    /** As Kafka Connect reads its topics: until the position is the end that was asked for before. */
    static void readToEnd() {
        Properties options = new Properties();
        options.put("bootstrap.servers", bootstrap);
        options.put("key.deserializer", "org.apache.kafka.common.serialization.ByteArrayDeserializer");
        options.put("value.deserializer", "org.apache.kafka.common.serialization.ByteArrayDeserializer");
        TopicPartition partition = new TopicPartition(topic, 0);
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(options)) {
            consumer.assign(List.of(partition));
            consumer.seekToBeginning(List.of(partition));
            long end = consumer.endOffsets(List.of(partition)).get(partition);
            int records = 0;
            long deadline = System.currentTimeMillis() + 30_000;
            while (consumer.position(partition) < end) {
                if (System.currentTimeMillis() > deadline)
                    throw new AssertionError("at " + consumer.position(partition) + " of " + end);
                records += consumer.poll(SHORT).count();
            }
            System.out.println(records + " records");
        }
    }

    static void produce() throws Exception {
        List<String> wanted = new ArrayList<>();
        for (String acks : List.of("0", "1", "all")) {
            for (String codec : List.of("none", "gzip", "snappy", "lz4", "zstd")) {
                try (KafkaProducer<String, String> producer =
                        producer("acks", acks, "compression.type", codec, "linger.ms", "20",
                                "enable.idempotence", acks.equals("all") ? "true" : "false")) {
                    for (int i = 0; i < 200; i++) {
                        String value = acks + codec + i + " compresses well".repeat(10);
                        wanted.add(value);
                        producer.send(new ProducerRecord<>(topic, value));
                    }
                }
            }
        }
        try (KafkaProducer<String, String> producer = producer()) {
            ProducerRecord<String, String> record = new ProducerRecord<>(topic, 0, BASE, "key", (String) null);
            record.headers().add("h", new byte[] {1}).add("nothing", null).add("h", new byte[0]);
            RecordMetadata told = producer.send(record).get();
            same(told.offset(), 3000L);
            same(told.timestamp(), BASE);
            wanted.add(null);
            fails(RecordTooLargeException.class,
                    () -> producer.send(new ProducerRecord<>(topic, "x".repeat(2_000_000))).get());
        }
        try (KafkaProducer<String, String> producer = producer("max.request.size", "4000000")) {
            fails(RecordTooLargeException.class,
                    () -> producer.send(new ProducerRecord<>(topic, "x".repeat(2_000_000))).get());
        }
        try (KafkaConsumer<String, String> consumer = consumer()) {
            consumer.assign(List.of(new TopicPartition(topic, 0)));
            consumer.seekToBeginning(List.of());
            List<ConsumerRecord<String, String>> found = read(consumer, wanted.size());
            for (int i = 0; i < found.size(); i++) {
                same(found.get(i).offset(), (long) i);
                same(found.get(i).value(), wanted.get(i));
            }
            ConsumerRecord<String, String> last = found.get(found.size() - 1);
            same(last.key(), "key");
            List<String> headers = new ArrayList<>();
            for (Header header : last.headers()) {
                headers.add(header.key() + Arrays.toString(header.value()));
            }
            same(headers, List.of("h[1]", "nothingnull", "h[]"));
        }
    }

    /** Where to begin, and what a consumer can ask, under both isolation levels. */
    static void consume() throws Exception {
        create(3);
        List<TopicPartition> all = new ArrayList<>();
        for (int partition = 0; partition < 3; partition++) {
            all.add(new TopicPartition(topic, partition));
        }
        try (KafkaProducer<String, String> producer = producer()) {
            for (int i = 0; i < 9000; i++) {
                producer.send(new ProducerRecord<>(topic, i % 3, BASE + i, null, "" + i));
            }
        }
        for (String level : List.of("read_committed", "read_uncommitted")) {
            try (KafkaConsumer<String, String> consumer = consumer("isolation.level", level)) {
                same(consumer.partitionsFor(topic).size(), 3);
                check(consumer.listTopics().containsKey(topic), "listTopics");
                same(consumer.beginningOffsets(all).get(all.get(1)), 0L);
                same(consumer.endOffsets(all).get(all.get(1)), 3000L);
                Map<TopicPartition, Long> times = new HashMap<>();
                times.put(all.get(0), BASE + 300);
                times.put(all.get(1), BASE + 300);
                times.put(all.get(2), BASE + 100_000);
                Map<TopicPartition, OffsetAndTimestamp> at = consumer.offsetsForTimes(times);
                same(at.get(all.get(0)).offset(), 100L);
                same(at.get(all.get(1)).timestamp(), BASE + 301);
                same(at.get(all.get(2)), null);
                consumer.assign(all);
                consumer.seekToBeginning(all);
                Map<Integer, Long> next = new TreeMap<>();
                for (ConsumerRecord<String, String> one : read(consumer, 9000)) {
                    same(one.offset(), next.getOrDefault(one.partition(), 0L));
                    same(one.value(), "" + (one.offset() * 3 + one.partition()));
                    next.put(one.partition(), one.offset() + 1);
                }
                same(consumer.currentLag(all.get(0)).getAsLong(), 0L);
                consumer.seekToEnd(all);
                same(consumer.position(all.get(2)), 3000L);
                check(consumer.poll(Duration.ofMillis(300)).isEmpty(), "records behind the end");
                consumer.seek(all.get(2), 2990);
                same(read(consumer, 10).get(0).value(), "" + (2990 * 3 + 2));
                consumer.pause(List.of(all.get(2)));
                consumer.seek(all.get(2), 2990);
                consumer.seek(all.get(0), 2999);
                same(read(consumer, 1).get(0).partition(), 0);
            }
        }
        try (KafkaConsumer<String, String> consumer = consumer("auto.offset.reset", "earliest")) {
            consumer.assign(List.of(all.get(0)));
            consumer.seek(all.get(0), 1_000_000);
            long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(20);
            ConsumerRecords<String, String> found = consumer.poll(SHORT);
            while (found.isEmpty() && System.nanoTime() < deadline) {
                found = consumer.poll(SHORT);
            }
            same(found.iterator().next().offset(), 0L);
        }
    }

    static class Member extends Thread implements ConsumerRebalanceListener {
        final KafkaConsumer<String, String> consumer;
        final Set<Integer> assigned = Collections.synchronizedSet(new TreeSet<>());
        final Set<Integer> everRevoked = Collections.synchronizedSet(new TreeSet<>());
        final Set<String> seen = Collections.synchronizedSet(new LinkedHashSet<>());
        final AtomicReference<Throwable> error = new AtomicReference<>();
        volatile boolean stop;

        Member(String... pairs) {
            consumer = consumer(pairs);
            consumer.subscribe(List.of(topic), this);
            start();
        }

        @Override
        public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
            partitions.forEach(one -> assigned.add(one.partition()));
        }

        @Override
        public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
            partitions.forEach(one -> {
                assigned.remove(one.partition());
                everRevoked.add(one.partition());
            });
        }

        @Override
        public void run() {
            try {
                while (!stop) {
                    for (ConsumerRecord<String, String> one : consumer.poll(SHORT)) {
                        seen.add(one.value());
                    }
                }
                consumer.close();
            } catch (Throwable failure) {
                error.set(failure);
            }
        }

        void end() throws InterruptedException {
            stop = true;
            join(20_000);
            check(!isAlive() && error.get() == null, error.get());
        }
    }

    static void until(String what, java.util.function.BooleanSupplier condition) throws InterruptedException {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(40);
        while (!condition.getAsBoolean()) {
            check(System.nanoTime() < deadline, what);
            Thread.sleep(5);
        }
    }

    static boolean even(int partitions, Member... members) {
        Set<Integer> union = new HashSet<>();
        int sum = 0;
        for (Member member : members) {
            synchronized (member.assigned) {
                union.addAll(member.assigned);
                sum += member.assigned.size();
                if (member.assigned.size() != partitions / members.length) {
                    return false;
                }
            }
        }
        return union.size() == partitions && sum == partitions;
    }

    static Set<String> send(String prefix, int count, int partitions) throws Exception {
        Set<String> sent = new HashSet<>();
        try (KafkaProducer<String, String> producer = producer()) {
            for (int i = 0; i < count; i++) {
                sent.add(prefix + i);
                producer.send(new ProducerRecord<>(topic, i % partitions, null, prefix + i));
            }
        }
        return sent;
    }

    /** Two, three and two members; commits of every kind; static members; who may not commit. */
    static void group() throws Exception {
        create(6);
        Set<String> wanted = send("a", 60, 6);
        String[] options = {"group.id", topic, "auto.offset.reset", "earliest"};
        Member one = new Member(options);
        until("one has all", () -> even(6, one));
        Member two = new Member(options);
        until("halves", () -> even(6, one, two));
        Member three = new Member(options);
        until("thirds", () -> even(6, one, two, three));
        wanted.addAll(send("b", 60, 6));
        two.end();
        until("halves again", () -> even(6, one, three));
        wanted.addAll(send("c", 60, 6));
        until("all was seen", () -> {
            Set<String> seen = new HashSet<>();
            for (Member member : List.of(one, two, three)) {
                synchronized (member.seen) {
                    seen.addAll(member.seen);
                }
            }
            return seen.equals(wanted);
        });
        one.end();
        three.end();

        TopicPartition first = new TopicPartition(topic, 0);
        String[] manual = {"group.id", topic + "-manual", "auto.offset.reset", "earliest", "enable.auto.commit", "false"};
        try (KafkaConsumer<String, String> consumer = consumer(manual)) {
            consumer.subscribe(List.of(topic));
            read(consumer, 180);
            same(consumer.committed(Set.of(first)).get(first), null);
            consumer.commitSync();
            same(consumer.committed(Set.of(first)).get(first).offset(), 30L);
            consumer.commitSync(Map.of(first, new OffsetAndMetadata(7, "note")));
            same(consumer.committed(Set.of(first)).get(first).metadata(), "note");
            CountDownLatch done = new CountDownLatch(1);
            AtomicReference<Exception> failure = new AtomicReference<>();
            consumer.commitAsync(Map.of(first, new OffsetAndMetadata(9)), (offsets, error) -> {
                failure.set(error);
                done.countDown();
            });
            while (done.getCount() > 0) {
                consumer.poll(SHORT);
            }
            same(failure.get(), null);
            try (KafkaConsumer<String, String> stranger = consumer(manual)) {
                stranger.assign(List.of(first));
                fails(org.apache.kafka.clients.consumer.CommitFailedException.class,
                        () -> stranger.commitSync(Map.of(first, new OffsetAndMetadata(1))));
            }
            same(consumer.committed(Set.of(first)).get(first).offset(), 9L);
        }
        try (KafkaConsumer<String, String> consumer = consumer(manual)) {
            consumer.subscribe(List.of(topic));
            same(read(consumer, 21).get(0).offset(), 9L);
        }

        String[] fixed = {"group.id", topic + "-static", "group.instance.id", "i0"};
        String[] other = {"group.id", topic + "-static", "group.instance.id", "i1"};
        Member zero = new Member(fixed);
        Member before = new Member(other);
        until("halves of static members", () -> even(6, zero, before));
        Set<Integer> had = new TreeSet<>(before.assigned);
        before.end();
        Member after = new Member(other);
        until("the same half", () -> after.assigned.equals(had));
        check(zero.assigned.size() == 3, zero.assigned);
        zero.end();
        after.end();
    }

    /** Cooperative rebalances: what stays is never revoked. */
    static void cooperative() throws Exception {
        create(6);
        String[] options = {"group.id", topic, "auto.offset.reset", "earliest", "partition.assignment.strategy",
            "org.apache.kafka.clients.consumer.CooperativeStickyAssignor"};
        Member one = new Member(options);
        until("one has all", () -> even(6, one));
        Member two = new Member(options);
        until("halves", () -> even(6, one, two));
        same(one.everRevoked, two.assigned);
        two.end();
        until("all again", () -> even(6, one));
        one.end();
    }

    static long listed(Admin admin, OffsetSpec spec) throws Exception {
        TopicPartition where = new TopicPartition(topic, 0);
        ListOffsetsResult.ListOffsetsResultInfo info =
                admin.listOffsets(Map.of(where, spec)).partitionResult(where).get();
        return info.offset();
    }

    static void admin() throws Exception {
        try (Admin admin = Admin.create(properties())) {
            NewTopic asked = new NewTopic(topic, 2, (short) 1).configs(Map.of("retention.ms", "7777777"));
            var dry = admin.createTopics(List.of(asked),
                    new org.apache.kafka.clients.admin.CreateTopicsOptions().validateOnly(true));
            same(dry.numPartitions(topic).get(), 2);
            check(!admin.listTopics().names().get().contains(topic), "a dry run creates nothing");
            var made = admin.createTopics(List.of(asked));
            Uuid id = made.topicId(topic).get();
            same(made.numPartitions(topic).get(), 2);
            same(made.config(topic).get().get("retention.ms").value(), "7777777");
            fails(TopicExistsException.class, () -> admin.createTopics(List.of(asked)).all().get());
            TopicDescription described = admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic);
            same(described.topicId(), id);
            same(described.partitions().get(1).leader().id(), 1);
            same(admin.describeTopics(TopicCollection.ofTopicIds(List.of(id))).allTopicIds().get().get(id).name(),
                    topic);
            fails(UnknownTopicIdException.class,
                    () -> admin.describeTopics(TopicCollection.ofTopicIds(List.of(Uuid.randomUuid())))
                            .allTopicIds().get());
            fails(UnknownTopicOrPartitionException.class,
                    () -> admin.describeTopics(List.of("no-such-topic")).allTopicNames().get());
            admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(3))).all().get();
            fails(InvalidPartitionsException.class,
                    () -> admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(3))).all().get());
            same(admin.describeTopics(List.of(topic)).allTopicNames().get().get(topic).partitions().size(), 3);

            ConfigResource resource = new ConfigResource(ConfigResource.Type.TOPIC, topic);
            admin.incrementalAlterConfigs(Map.of(resource, List.of(
                    new AlterConfigOp(new ConfigEntry("cleanup.policy", "compact"), AlterConfigOp.OpType.APPEND),
                    new AlterConfigOp(new ConfigEntry("retention.ms", ""), AlterConfigOp.OpType.DELETE)))).all().get();
            var config = admin.describeConfigs(List.of(resource)).all().get().get(resource);
            same(config.get("cleanup.policy").value(), "delete,compact");
            same(config.get("cleanup.policy").source(), ConfigEntry.ConfigSource.DYNAMIC_TOPIC_CONFIG);
            check(config.get("retention.ms").isDefault(), config.get("retention.ms"));
            same(config.get("retention.ms").type(), ConfigEntry.ConfigType.LONG);
            fails(InvalidConfigurationException.class, () -> admin.incrementalAlterConfigs(Map.of(resource, List.of(
                    new AlterConfigOp(new ConfigEntry("no.such", "1"), AlterConfigOp.OpType.SET)))).all().get());
            admin.incrementalAlterConfigs(Map.of(resource, List.of(
                    new AlterConfigOp(new ConfigEntry("cleanup.policy", ""), AlterConfigOp.OpType.DELETE)))).all().get();
            ConfigResource broker = new ConfigResource(ConfigResource.Type.BROKER, "1");
            check(admin.describeConfigs(List.of(broker)).all().get().get(broker).get("node.id").isReadOnly(), "node.id");

            try (KafkaProducer<String, String> producer = producer()) {
                List<Future<RecordMetadata>> sent = new ArrayList<>();
                for (int i = 0; i < 20; i++) {
                    sent.add(producer.send(new ProducerRecord<>(topic, 0, BASE + i % 15, null, "v" + i)));
                }
                for (Future<RecordMetadata> one : sent) {
                    one.get();
                }
            }
            same(listed(admin, OffsetSpec.earliest()), 0L);
            same(listed(admin, OffsetSpec.latest()), 20L);
            same(listed(admin, OffsetSpec.maxTimestamp()), 14L);
            same(listed(admin, OffsetSpec.forTimestamp(BASE + 3)), 3L);
            same(listed(admin, OffsetSpec.earliestLocal()), 0L);
            same(listed(admin, OffsetSpec.latestTiered()), -1L);
            TopicPartition where = new TopicPartition(topic, 0);
            same(admin.deleteRecords(Map.of(where, RecordsToDelete.beforeOffset(5))).lowWatermarks().get(where).get()
                    .lowWatermark(), 5L);
            same(listed(admin, OffsetSpec.earliest()), 5L);
            fails(OffsetOutOfRangeException.class,
                    () -> admin.deleteRecords(Map.of(where, RecordsToDelete.beforeOffset(21))).all().get());

            same(admin.describeCluster().nodes().get().iterator().next().id(), 1);
            same(admin.describeCluster().controller().get().id(), 1);
            same(admin.describeCluster().clusterId().get().length(), 22);
            var directories = admin.describeLogDirs(List.of(1)).allDescriptions().get().get(1);
            same(directories.size(), 1);
            check(directories.values().iterator().next().replicaInfos().get(where).size() > 20, directories);
            same(admin.describeFeatures().featureMetadata().get().finalizedFeatures().get("group.version")
                    .maxVersionLevel(), (short) 1);

            groups(admin, where);

            admin.deleteTopics(TopicCollection.ofTopicIds(List.of(id))).all().get();
            fails(UnknownTopicOrPartitionException.class, () -> admin.deleteTopics(List.of(topic)).all().get());
        }
    }

    static void groups(Admin admin, TopicPartition where) throws Exception {
        String group = topic + "-group";
        Member member = new Member("group.id", group, "auto.offset.reset", "earliest", "client.id", "reader",
                "group.instance.id", "fixed");
        until("the group is there", () -> member.seen.size() == 15);
        ConsumerGroupDescription described =
                admin.describeConsumerGroups(List.of(group)).describedGroups().get(group).get();
        same(described.partitionAssignor(), "range");
        same(described.members().size(), 1);
        var told = described.members().iterator().next();
        same(told.clientId(), "reader");
        same(told.host(), "/127.0.0.1");
        same(told.groupInstanceId().get(), "fixed");
        same(told.assignment().topicPartitions().size(), 3);
        check(admin.listConsumerGroups().all().get().stream().anyMatch(one -> one.groupId().equals(group)), "listed");
        fails(GroupNotEmptyException.class, () -> admin.deleteConsumerGroups(List.of(group)).all().get());
        Map<TopicPartition, OffsetAndMetadata> offsets = Map.of(where, new OffsetAndMetadata(6, "note"));
        fails(UnknownMemberIdException.class, () -> admin.alterConsumerGroupOffsets(group, offsets).all().get());
        member.end();
        admin.removeMembersFromConsumerGroup(group,
                new RemoveMembersFromConsumerGroupOptions(Set.of(new MemberToRemove("fixed")))).all().get();
        until("empty", () -> {
            try {
                return admin.describeConsumerGroups(List.of(group)).describedGroups().get(group).get().members()
                        .isEmpty();
            } catch (Exception error) {
                throw new AssertionError(error);
            }
        });
        same(admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().get(where).offset(), 20L);
        admin.alterConsumerGroupOffsets(group, offsets).all().get();
        var many = admin.listConsumerGroupOffsets(Map.of(group, new ListConsumerGroupOffsetsSpec(),
                group + "-none", new ListConsumerGroupOffsetsSpec().topicPartitions(List.of(where))));
        same(many.partitionsToOffsetAndMetadata(group).get().get(where).metadata(), "note");
        same(many.partitionsToOffsetAndMetadata(group + "-none").get().get(where), null);
        admin.deleteConsumerGroupOffsets(group, Set.of(where)).all().get();
        same(admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().get(where), null);
        admin.deleteConsumerGroups(List.of(group)).all().get();
        fails(GroupIdNotFoundException.class, () -> admin.deleteConsumerGroups(List.of(group)).all().get());
    }

    /** The default producer sends numbers until it is told to end by its input; then what was acknowledged is told. */
    static void load(int perSecond) throws Exception {
        AtomicReference<Exception> failure = new AtomicReference<>();
        int sent = 0;
        java.util.concurrent.atomic.AtomicInteger acknowledged = new java.util.concurrent.atomic.AtomicInteger();
        try (KafkaProducer<String, String> producer = producer()) {
            while (System.in.available() == 0) {
                String value = "" + sent++;
                producer.send(new ProducerRecord<>(topic, 0, null, value), (metadata, error) -> {
                    if (error != null) {
                        failure.compareAndSet(null, error);
                    } else if (acknowledged.incrementAndGet() % 100 == 0) {
                        System.out.println("acknowledged " + acknowledged.get());
                    }
                });
                Thread.sleep(0, 1_000_000_000 / perSecond % 1_000_000);
                if (sent % 10 == 0) {
                    Thread.sleep(10_000 / perSecond);
                }
            }
        }
        same(failure.get(), null);
        same(acknowledged.get(), sent);
        System.out.println("sent " + sent);
    }
}
