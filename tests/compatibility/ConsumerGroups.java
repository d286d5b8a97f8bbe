import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Collections;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.Properties;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicReference;
import java.util.function.BooleanSupplier;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.AlterConfigOp;
import org.apache.kafka.clients.admin.ConfigEntry;
import org.apache.kafka.clients.admin.ConsumerGroupDescription;
import org.apache.kafka.clients.admin.ListGroupsOptions;
import org.apache.kafka.clients.admin.MemberDescription;
import org.apache.kafka.clients.admin.NewPartitions;
import org.apache.kafka.clients.admin.NewTopic;
import org.apache.kafka.clients.consumer.ConsumerRebalanceListener;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.SubscriptionPattern;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.GroupState;
import org.apache.kafka.common.GroupType;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.config.ConfigResource;
import org.apache.kafka.common.errors.GroupNotEmptyException;
import org.apache.kafka.common.errors.InvalidRegularExpression;
import org.apache.kafka.common.errors.UnreleasedInstanceIdException;
import org.apache.kafka.common.errors.UnsupportedAssignorException;

/** The consumer group protocol: `java ConsumerGroups SCENARIO BOOTSTRAP TOPIC`; prints "passed" at the end. */
public class ConsumerGroups {
    static final Duration SHORT = Duration.ofMillis(100);
    static String bootstrap;
    static String topic;

    public static void main(String[] arguments) throws Exception {
        bootstrap = arguments[1];
        topic = arguments[2];
        switch (arguments[0]) {
            case "group": group(); break;
            case "expressions": expressions(); break;
            case "static": staticMembers(); break;
            case "mixed": mixed(); break;
            case "admin": admin(); break;
            case "through_kills": throughKills(); break;
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

    static void until(String what, BooleanSupplier condition) throws InterruptedException {
        long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(60);
        while (!condition.getAsBoolean()) {
            check(System.nanoTime() < deadline, what);
            Thread.sleep(5);
        }
    }

    static Properties properties(String... pairs) {
        Properties properties = new Properties();
        properties.put("bootstrap.servers", bootstrap);
        properties.put("key.deserializer", "org.apache.kafka.common.serialization.StringDeserializer");
        properties.put("value.deserializer", "org.apache.kafka.common.serialization.StringDeserializer");
        properties.put("key.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        properties.put("value.serializer", "org.apache.kafka.common.serialization.StringSerializer");
        for (int i = 0; i < pairs.length; i += 2) {
            properties.put(pairs[i], pairs[i + 1]);
        }
        return properties;
    }

    /** A consumer with a thread of its own. */
    static class Member extends Thread implements ConsumerRebalanceListener {
        final KafkaConsumer<String, String> consumer;
        final Set<TopicPartition> assigned = Collections.synchronizedSet(new HashSet<>());
        final Set<TopicPartition> everRevoked = Collections.synchronizedSet(new HashSet<>());
        final Set<String> seen = Collections.synchronizedSet(new HashSet<>());
        final AtomicReference<Throwable> error = new AtomicReference<>();
        volatile boolean stop;

        Member(boolean modern, SubscriptionPattern pattern, String... more) {
            List<String> pairs = new ArrayList<>(List.of("group.id", topic, "auto.offset.reset", "earliest"));
            if (modern) {
                pairs.addAll(List.of("group.protocol", "consumer"));
            } else {
                pairs.addAll(List.of("heartbeat.interval.ms", "300", "session.timeout.ms", "6000"));
            }
            pairs.addAll(Arrays.asList(more));
            consumer = new KafkaConsumer<>(properties(pairs.toArray(new String[0])));
            if (pattern == null) {
                consumer.subscribe(List.of(topic), this);
            } else {
                consumer.subscribe(pattern, this);
            }
            start();
        }

        static Member modern(String... more) {
            return new Member(true, null, more);
        }

        static Member classic(String... more) {
            return new Member(false, null, more);
        }

        @Override
        public void onPartitionsAssigned(Collection<TopicPartition> partitions) {
            assigned.addAll(partitions);
        }

        @Override
        public void onPartitionsRevoked(Collection<TopicPartition> partitions) {
            assigned.removeAll(partitions);
            everRevoked.addAll(partitions);
        }

        @Override
        public void run() {
            try {
                while (!stop) {
                    for (ConsumerRecord<String, String> one : consumer.poll(SHORT)) {
                        seen.add(one.value());
                    }
                }
            } catch (Throwable failure) {
                error.set(failure);
            } finally {
                consumer.close();
            }
        }

        void end() throws InterruptedException {
            stop = true;
            join(30_000);
            check(!isAlive() && error.get() == null, error.get());
        }

        void endWith(Class<? extends Throwable> kind) throws InterruptedException {
            until(kind.getSimpleName(), () -> error.get() != null);
            check(kind.isInstance(error.get()), error.get());
            join(30_000);
        }
    }

    static boolean even(int partitions, Member... members) {
        Set<TopicPartition> union = new HashSet<>();
        for (Member member : members) {
            synchronized (member.assigned) {
                if (member.assigned.size() != partitions / members.length) {
                    return false;
                }
                union.addAll(member.assigned);
            }
        }
        return union.size() == partitions;
    }

    static boolean sawAll(Set<String> wanted, Member... members) {
        Set<String> seen = new HashSet<>();
        for (Member member : members) {
            synchronized (member.seen) {
                seen.addAll(member.seen);
            }
        }
        return seen.equals(wanted);
    }

    static void create(String name, int partitions) throws Exception {
        try (Admin admin = Admin.create(properties())) {
            admin.createTopics(List.of(new NewTopic(name, partitions, (short) 1))).all().get();
        }
    }

    /** A machine that stalls for seconds is to end no session of this group: who is fenced gives up what he has. */
    static void keepMembers() throws Exception {
        try (Admin admin = Admin.create(properties())) {
            ConfigEntry entry = new ConfigEntry("consumer.session.timeout.ms", "45000");
            admin.incrementalAlterConfigs(Map.of(new ConfigResource(ConfigResource.Type.GROUP, topic),
                    List.of(new AlterConfigOp(entry, AlterConfigOp.OpType.SET)))).all().get();
        }
    }

    static Set<String> send(String to, String prefix, int count, int partitions) throws Exception {
        Set<String> sent = new HashSet<>();
        try (KafkaProducer<String, String> producer = new KafkaProducer<>(properties())) {
            for (int i = 0; i < count; i++) {
                sent.add(prefix + i);
                producer.send(new ProducerRecord<>(to, i % partitions, null, prefix + i));
            }
        }
        return sent;
    }

    /** Members come and go while records are read, with both assignors; partitions are added. */
    static void group() throws Exception {
        create(topic, 6);
        Set<String> wanted = send(topic, "a", 60, 6);
        Member one = Member.modern();
        until("one has all", () -> even(6, one));
        Member two = Member.modern("group.remote.assignor", "range");
        until("halves", () -> even(6, one, two));
        wanted.addAll(send(topic, "b", 60, 6));
        Member three = Member.modern();
        until("thirds", () -> even(6, one, two, three));
        wanted.addAll(send(topic, "c", 60, 6));
        two.end();
        until("halves again", () -> even(6, one, three));
        try (Admin admin = Admin.create(properties())) {
            admin.createPartitions(Map.of(topic, NewPartitions.increaseTo(8))).all().get();
        }
        until("more partitions", () -> even(8, one, three));
        wanted.addAll(send(topic, "d", 80, 8));
        until("all was seen", () -> sawAll(wanted, one, two, three));
        Member wrong = Member.modern("group.remote.assignor", "mine");
        wrong.endWith(UnsupportedAssignorException.class);
        one.end();
        three.end();
        // Where the group stopped it goes on.
        Set<String> more = send(topic, "e", 8, 8);
        Member later = Member.modern();
        until("only what is new", () -> sawAll(more, later));
        later.end();
    }

    static void expressions() throws Exception {
        create(topic + "-1", 2);
        create("not-" + topic, 2);
        Member one = new Member(true, new SubscriptionPattern(topic + "-.*"));
        until("one topic", () -> even(2, one));
        create(topic + "-2", 2);
        until("two topics", () -> even(4, one));
        Member two = new Member(true, new SubscriptionPattern(topic + "-.*"));
        until("halves", () -> even(4, one, two));
        Member wrong = new Member(true, new SubscriptionPattern("("));
        wrong.endWith(InvalidRegularExpression.class);
        two.end();
        one.end();
    }

    static void staticMembers() throws Exception {
        create(topic, 4);
        keepMembers();
        Member one = Member.modern("group.instance.id", "i");
        Member two = Member.modern("group.instance.id", "j");
        until("halves", () -> even(4, one, two));
        Set<TopicPartition> had = Set.copyOf(one.assigned);
        Member same = Member.modern("group.instance.id", "i");
        same.endWith(UnreleasedInstanceIdException.class);
        two.everRevoked.clear();
        one.end();
        Member again = Member.modern("group.instance.id", "i");
        until("as before", () -> again.assigned.equals(had));
        check(two.everRevoked.isEmpty(), two.everRevoked);
        again.end();
        two.end();
    }

    /** A group goes from the classic protocol to the other and back, member by member, and nobody misses a record. */
    static void mixed() throws Exception {
        create(topic, 6);
        Set<String> wanted = send(topic, "a", 60, 6);
        String sticky = "org.apache.kafka.clients.consumer.CooperativeStickyAssignor";
        Member one = Member.classic("partition.assignment.strategy", sticky);
        Member two = Member.classic("partition.assignment.strategy", sticky);
        until("halves", () -> even(6, one, two));
        Member three = Member.modern();
        until("thirds", () -> even(6, one, two, three));
        wanted.addAll(send(topic, "b", 60, 6));
        one.end();
        until("halves of two protocols", () -> even(6, two, three));
        wanted.addAll(send(topic, "c", 60, 6));
        Member four = Member.modern();
        two.end();
        until("halves of the new one", () -> even(6, three, four));
        Member five = Member.classic();
        until("thirds again", () -> even(6, three, four, five));
        wanted.addAll(send(topic, "d", 60, 6));
        three.end();
        four.end();
        until("the classic one has all", () -> even(6, five));
        wanted.addAll(send(topic, "e", 60, 6));
        until("all was seen", () -> sawAll(wanted, one, two, three, four, five));
        five.end();
    }

    static void admin() throws Exception {
        create(topic, 4);
        Member one = Member.modern("client.id", "modern");
        until("one has all", () -> even(4, one));
        Member two = Member.classic("client.id", "classic");
        until("halves", () -> even(4, one, two));
        try (Admin admin = Admin.create(properties())) {
            ConsumerGroupDescription[] found = new ConsumerGroupDescription[1];
            until("stable", () -> {
                try {
                    found[0] = admin.describeConsumerGroups(List.of(topic)).all().get().get(topic);
                    return found[0].groupState() == GroupState.STABLE;
                } catch (InterruptedException | ExecutionException error) {
                    throw new AssertionError(error);
                }
            });
            ConsumerGroupDescription described = found[0];
            same(described.type(), GroupType.CONSUMER);
            same(described.partitionAssignor(), "uniform");
            check(described.groupEpoch().orElse(-1).equals(described.targetAssignmentEpoch().orElse(-2)), described);
            same(described.members().size(), 2);
            for (MemberDescription member : described.members()) {
                same(member.assignment().topicPartitions().size(), 2);
                same(member.targetAssignment().get(), member.assignment());
                same(member.memberEpoch(), described.groupEpoch());
                same(member.upgraded().get(), member.clientId().equals("modern"));
            }
            ListGroupsOptions consumers = new ListGroupsOptions().withTypes(Set.of(GroupType.CONSUMER));
            Set<String> names = new TreeSet<>();
            admin.listGroups(consumers).all().get().forEach(group -> names.add(group.groupId()));
            check(names.contains(topic), names);
            ListGroupsOptions empty = new ListGroupsOptions().inGroupStates(Set.of(GroupState.EMPTY));
            check(admin.listGroups(empty).all().get().stream().noneMatch(group -> group.groupId().equals(topic)), "empty");
            try {
                admin.deleteConsumerGroups(List.of(topic)).all().get();
                throw new AssertionError("deleted");
            } catch (ExecutionException error) {
                check(error.getCause() instanceof GroupNotEmptyException, error);
            }
            ConfigResource resource = new ConfigResource(ConfigResource.Type.GROUP, topic);
            ConfigEntry entry = new ConfigEntry("consumer.heartbeat.interval.ms", "1000");
            admin.incrementalAlterConfigs(Map.of(resource, List.of(new AlterConfigOp(entry, AlterConfigOp.OpType.SET))))
                    .all().get();
            same(admin.describeConfigs(List.of(resource)).all().get().get(resource).get(entry.name()).value(), "1000");
            two.end();
            one.end();
            until("empty", () -> {
                try {
                    ConsumerGroupDescription now = admin.describeConsumerGroups(List.of(topic)).all().get().get(topic);
                    return now.groupState() == GroupState.EMPTY;
                } catch (InterruptedException | ExecutionException error) {
                    throw new AssertionError(error);
                }
            });
            check(admin.listConsumerGroupOffsets(topic).partitionsToOffsetAndMetadata().get() != null, "offsets");
            admin.deleteConsumerGroups(List.of(topic)).all().get();
        }
    }

    /** Two members that go on while the coordinator is killed, until a line comes on standard input. */
    static void throughKills() throws Exception {
        Member one = Member.modern();
        Member two = Member.modern();
        until("halves", () -> even(4, one, two));
        System.out.println("ready");
        int sent = 0;
        Set<String> wanted = new HashSet<>();
        try (KafkaProducer<String, String> producer = new KafkaProducer<>(properties())) {
            while (System.in.available() == 0) {
                String value = "" + sent;
                producer.send(new ProducerRecord<>(topic, sent % 4, null, value));
                wanted.add(value);
                sent++;
                Thread.sleep(10);
                if (sent % 50 == 0) {
                    producer.flush();
                    System.out.println("sent " + sent);
                }
            }
        }
        until("all was seen", () -> sawAll(wanted, one, two));
        check(even(4, one, two), "halves");
        one.end();
        two.end();
    }
}
