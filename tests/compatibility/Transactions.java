import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Properties;
import java.util.Set;
import java.util.TreeSet;
import org.apache.kafka.clients.admin.AbortTransactionSpec;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.ListTransactionsOptions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.admin.ProducerState;
import org.apache.kafka.clients.admin.TransactionDescription;
import org.apache.kafka.clients.admin.TransactionListing;
import org.apache.kafka.clients.admin.TransactionState;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.InvalidProducerEpochException;
import org.apache.kafka.common.errors.ProducerFencedException;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/** Kafka's transactional producer: `java Transactions SCENARIO BOOTSTRAP TOPIC`; prints "passed" at the end. */
public class Transactions {
    static final Duration SHORT = Duration.ofMillis(100);
    static String bootstrap;
    static String topic;

    public static void main(String[] arguments) throws Exception {
        bootstrap = arguments[1];
        topic = arguments[2];
        switch (arguments[0]) {
            case "atomic": atomic(); break;
            case "copy": copy(Integer.parseInt(arguments[3])); break;
            case "fence": fence(); break;
            case "timeout": timeout(); break;
            case "admin": admin(); break;
            case "hang": hang(); break;
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

    static Properties properties(String... pairs) {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", bootstrap);
        for (int i = 0; i < pairs.length; i += 2) {
            properties.put(pairs[i], pairs[i + 1]);
        }
        return properties;
    }

    static KafkaProducer<String, String> producer(String id, String... pairs) {
        Properties properties = properties(pairs);
        properties.put("transactional.id", id);
        return new KafkaProducer<>(properties, new StringSerializer(), new StringSerializer());
    }

    static KafkaConsumer<String, String> consumer(String... pairs) {
        Properties properties = properties(pairs);
        properties.put("auto.offset.reset", "earliest");
        return new KafkaConsumer<>(properties, new StringDeserializer(), new StringDeserializer());
    }

    static void create(String name, int partitions) throws Exception {
        try (Admin admin = Admin.create(properties())) {
            admin.createTopics(List.of(new NewTopic(name, partitions, (short) 1))).all().get();
        }
    }

    /** Everything up to the end of all partitions, as a consumer of this isolation sees it. */
    static List<String> readAll(String name, String isolation) {
        List<String> found = new ArrayList<>();
        try (KafkaConsumer<String, String> consumer = consumer("isolation.level", isolation)) {
            List<TopicPartition> partitions = new ArrayList<>();
            consumer.partitionsFor(name).forEach(one -> partitions.add(new TopicPartition(name, one.partition())));
            consumer.assign(partitions);
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
            while (!ends.isEmpty()) {
                for (ConsumerRecord<String, String> one : consumer.poll(SHORT)) {
                    found.add(one.value());
                }
                ends.entrySet().removeIf(end -> consumer.position(end.getKey()) >= end.getValue());
            }
        }
        return found;
    }

    static void atomic() throws Exception {
        create(topic, 3);
        try (KafkaProducer<String, String> producer = producer(topic + "-tx")) {
            producer.initTransactions();
            for (int i = 0; i < 40; i++) {
                producer.beginTransaction();
                for (int partition = 0; partition < 3; partition++) {
                    producer.send(new ProducerRecord<>(topic, partition, null, i + "-" + partition));
                }
                if (i % 4 == 3) {
                    producer.flush();
                    producer.abortTransaction();
                } else {
                    producer.commitTransaction();
                }
            }
            producer.beginTransaction();
            producer.abortTransaction();
        }
        List<String> committed = readAll(topic, "read_committed");
        same(committed.size(), 90);
        for (String value : committed) {
            check(Integer.parseInt(value.split("-")[0]) % 4 != 3, value);
        }
        same(new TreeSet<>(committed).size(), 90);
        same(readAll(topic, "read_uncommitted").size(), 120);
    }

    /** Moves records of `topic` to `topic`-out, exactly once, by a group; a part of the transactions is aborted. */
    static void copy(int count) throws Exception {
        String out = topic + "-out";
        TopicPartition from = new TopicPartition(topic, 0);
        try (KafkaProducer<String, String> producer = producer(topic + "-copy");
             KafkaConsumer<String, String> consumer = consumer(
                 "group.id", topic + "-group", "enable.auto.commit", "false", "isolation.level", "read_committed",
                 "max.poll.records", "7", "session.timeout.ms", "6000", "heartbeat.interval.ms", "1000")) {
            producer.initTransactions();
            consumer.subscribe(List.of(topic));
            int copied = 0;
            int turn = 0;
            while (copied < count) {
                ConsumerRecords<String, String> records = consumer.poll(SHORT);
                if (records.isEmpty()) {
                    continue;
                }
                try {
                    producer.beginTransaction();
                    long next = 0;
                    for (ConsumerRecord<String, String> one : records) {
                        producer.send(new ProducerRecord<>(out, one.value()));
                        next = one.offset() + 1;
                    }
                    producer.sendOffsetsToTransaction(
                        Map.of(from, new OffsetAndMetadata(next)), consumer.groupMetadata());
                    if (++turn % 5 == 4) {
                        producer.abortTransaction();
                        consumer.seek(from, records.records(from).get(0).offset());
                        continue;
                    }
                    producer.commitTransaction();
                    copied = (int) next;
                    System.out.println("copied " + copied);
                } catch (ProducerFencedException | InvalidProducerEpochException error) {
                    throw error;
                } catch (KafkaException error) {
                    System.out.println("aborted after " + error);
                    producer.abortTransaction();
                    OffsetAndMetadata committed = consumer.committed(Set.of(from)).get(from);
                    long back = committed == null ? 0 : committed.offset();
                    consumer.seek(from, back);
                    copied = (int) back;
                }
            }
            same(consumer.committed(Set.of(from)).get(from).offset(), (long) count);
        }
    }

    static void fence() throws Exception {
        create(topic, 1);
        KafkaProducer<String, String> old = producer(topic + "-tx");
        old.initTransactions();
        old.beginTransaction();
        old.send(new ProducerRecord<>(topic, "lost")).get();
        try (KafkaProducer<String, String> young = producer(topic + "-tx")) {
            young.initTransactions();
            try {
                old.send(new ProducerRecord<>(topic, "late"));
                old.commitTransaction();
                throw new AssertionError("not fenced");
            } catch (ProducerFencedException | InvalidProducerEpochException error) {
                System.out.println("fenced: " + error);
            }
            old.close();
            young.beginTransaction();
            young.send(new ProducerRecord<>(topic, "kept"));
            young.commitTransaction();
        }
        same(readAll(topic, "read_committed"), List.of("kept"));
    }

    /** A transaction takes longer than it said: it is aborted, and its producer goes on as a new one. */
    static void timeout() throws Exception {
        create(topic, 1);
        try (KafkaProducer<String, String> slow = producer(topic + "-tx", "transaction.timeout.ms", "500")) {
            slow.initTransactions();
            slow.beginTransaction();
            slow.send(new ProducerRecord<>(topic, "slow")).get();
            try (Admin admin = Admin.create(properties())) {
                while (describe(admin).state() != TransactionState.COMPLETE_ABORT) {
                    Thread.sleep(50);
                }
            }
            try {
                slow.commitTransaction();
                throw new AssertionError("committed after its time");
            } catch (KafkaException error) {
                System.out.println("too late: " + error);
            }
        }
        try (KafkaProducer<String, String> next = producer(topic + "-tx")) {
            next.initTransactions();
            next.beginTransaction();
            next.send(new ProducerRecord<>(topic, "next"));
            next.commitTransaction();
        }
        same(readAll(topic, "read_committed"), List.of("next"));
    }

    static TransactionDescription describe(Admin admin) throws Exception {
        return admin.describeTransactions(List.of(topic + "-tx")).description(topic + "-tx").get();
    }

    static void admin() throws Exception {
        create(topic, 2);
        TopicPartition first = new TopicPartition(topic, 0);
        try (KafkaProducer<String, String> producer = producer(topic + "-tx"); Admin admin = Admin.create(properties())) {
            producer.initTransactions();
            same(describe(admin).state(), TransactionState.EMPTY);
            producer.beginTransaction();
            producer.send(new ProducerRecord<>(topic, 0, null, "x")).get();
            TransactionDescription ongoing = describe(admin);
            same(ongoing.state(), TransactionState.ONGOING);
            same(ongoing.topicPartitions(), Set.of(first));
            List<TransactionListing> listed = new ArrayList<>(admin.listTransactions(
                new ListTransactionsOptions().filterStates(Set.of(TransactionState.ONGOING))
                    .filterProducerIds(Set.of(ongoing.producerId()))).all().get());
            same(listed.size(), 1);
            same(listed.get(0).transactionalId(), topic + "-tx");
            List<ProducerState> active = admin.describeProducers(List.of(first)).partitionResult(first).get()
                .activeProducers();
            same(active.size(), 1);
            same(active.get(0).producerId(), ongoing.producerId());
            check(active.get(0).currentTransactionStartOffset().isPresent(), active);
            producer.commitTransaction();
            while (describe(admin).state() != TransactionState.COMPLETE_COMMIT) {
                Thread.sleep(20);
            }
            admin.fenceProducers(List.of(topic + "-tx")).all().get();
            producer.beginTransaction();
            try {
                producer.send(new ProducerRecord<>(topic, 0, null, "y"));
                producer.commitTransaction();
                throw new AssertionError("not fenced");
            } catch (KafkaException error) {
                System.out.println("fenced: " + error);
            }
        }
        same(readAll(topic, "read_committed"), List.of("x"));
    }

    /** Begins a transaction and does nothing more: whoever runs this kills it. */
    static void hang() throws Exception {
        KafkaProducer<String, String> producer = producer(topic + "-tx", "transaction.timeout.ms", "60000");
        producer.initTransactions();
        producer.beginTransaction();
        producer.send(new ProducerRecord<>(topic, 0, null, "hanging")).get();
        System.out.println("open");
        Thread.sleep(600_000);
    }
}
