import java.io.FileDescriptor;
import java.io.FileOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Set;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.coordinator.common.runtime.CoordinatorMetadataDelta;
import org.apache.kafka.coordinator.common.runtime.CoordinatorMetadataImage;
import org.apache.kafka.coordinator.common.runtime.CoordinatorRecord;
import org.apache.kafka.coordinator.group.GroupCoordinatorRecordHelpers;
import org.apache.kafka.coordinator.group.GroupCoordinatorRecordSerde;
import org.apache.kafka.coordinator.group.Utils;
import org.apache.kafka.coordinator.group.generated.ConsumerGroupMemberMetadataValue;
import org.apache.kafka.coordinator.group.modern.MemberState;
import org.apache.kafka.coordinator.group.modern.consumer.ConsumerGroupMember;
import org.apache.kafka.coordinator.group.modern.consumer.ResolvedRegularExpression;

/**
 * What Kafka's group coordinator writes: lines "name key value" in hex ("-": a tombstone), and "name number" for hashes
 * of topics and groups.
 */
public class GroupRecords {
    private static final HexFormat HEX = HexFormat.of();
    private static final GroupCoordinatorRecordSerde SERDE = new GroupCoordinatorRecordSerde();
    private static final Uuid FIRST = new Uuid(0x0001020304050607L, 0x08090a0b0c0d0e0fL);
    private static final Uuid SECOND = new Uuid(0xfffefdfcfbfaf9f8L, 0xf7f6f5f4f3f2f1f0L);
    private static PrintStream out;

    public static void main(String[] args) {
        out = new PrintStream(new FileOutputStream(FileDescriptor.out), false, StandardCharsets.UTF_8);
        members();
        assignments();
        rest();
        tombstones();
        hashes();
        out.flush();
    }

    private static void print(String name, CoordinatorRecord record) {
        byte[] value = SERDE.serializeValue(record);
        String text = value == null ? "-" : HEX.formatHex(value);
        out.println(name + " " + HEX.formatHex(SERDE.serializeKey(record)) + " " + text);
    }

    private static ConsumerGroupMember.Builder member(String id) {
        return new ConsumerGroupMember.Builder(id).setClientId("client").setClientHost("/10.0.0.1");
    }

    private static void members() {
        print("member-plain", GroupCoordinatorRecordHelpers.newConsumerGroupMemberSubscriptionRecord("g",
            member("m").setRebalanceTimeoutMs(300_000).setSubscribedTopicNames(List.of("u", "t")).build()));
        print("member-full", GroupCoordinatorRecordHelpers.newConsumerGroupMemberSubscriptionRecord("g",
            member("m").setInstanceId("i").setRackId("r").setRebalanceTimeoutMs(1).setSubscribedTopicRegex("t.*")
                .setSubscribedTopicNames(List.of("t")).setServerAssignorName("range").build()));
        ConsumerGroupMemberMetadataValue.ClassicProtocol range = new ConsumerGroupMemberMetadataValue.ClassicProtocol()
            .setName("range").setMetadata(new byte[] {0, 3, 1});
        ConsumerGroupMemberMetadataValue.ClassicProtocol sticky = new ConsumerGroupMemberMetadataValue.ClassicProtocol()
            .setName("cooperative-sticky").setMetadata(new byte[0]);
        print("member-classic", GroupCoordinatorRecordHelpers.newConsumerGroupMemberSubscriptionRecord("g",
            member("m").setRebalanceTimeoutMs(60_000).setSubscribedTopicNames(List.of("t"))
                .setClassicMemberMetadata(new ConsumerGroupMemberMetadataValue.ClassicMemberMetadata()
                    .setSessionTimeoutMs(45_000).setSupportedProtocols(List.of(range, sticky))).build()));
    }

    private static void assignments() {
        print("current-joining", GroupCoordinatorRecordHelpers.newConsumerGroupCurrentAssignmentRecord("g",
            member("m").build()));
        print("current-holding", GroupCoordinatorRecordHelpers.newConsumerGroupCurrentAssignmentRecord("g",
            member("m").setMemberEpoch(7).setPreviousMemberEpoch(6).setState(MemberState.UNREVOKED_PARTITIONS)
                .setAssignedPartitions(Map.of(FIRST, epochs(1, 5, 2, 7)))
                .setPartitionsPendingRevocation(Map.of(SECOND, epochs(0, 3))).build()));
        print("current-away", GroupCoordinatorRecordHelpers.newConsumerGroupCurrentAssignmentRecord("g",
            member("m").setMemberEpoch(-2).setPreviousMemberEpoch(7)
                .setAssignedPartitions(Map.of(FIRST, epochs(1, 5))).resetAssignedPartitionsEpochsToZero().build()));
        print("target-nothing", GroupCoordinatorRecordHelpers.newConsumerGroupTargetAssignmentRecord("g", "m", Map.of()));
        print("target", GroupCoordinatorRecordHelpers.newConsumerGroupTargetAssignmentRecord("g", "m",
            Map.of(FIRST, new LinkedHashSet<>(List.of(1, 2, 300)))));
    }

    private static Map<Integer, Integer> epochs(int... pairs) {
        Map<Integer, Integer> found = new LinkedHashMap<>();
        for (int at = 0; at < pairs.length; at += 2) {
            found.put(pairs[at], pairs[at + 1]);
        }
        return found;
    }

    private static void rest() {
        print("epoch", GroupCoordinatorRecordHelpers.newConsumerGroupEpochRecord("g", 7, -2L));
        print("epoch-no-topics", GroupCoordinatorRecordHelpers.newConsumerGroupEpochRecord("g", 7, 0L));
        print("target-epoch", GroupCoordinatorRecordHelpers.newConsumerGroupTargetAssignmentMetadataRecord("g", 7, 258L));
        print("target-epoch-never", GroupCoordinatorRecordHelpers.newConsumerGroupTargetAssignmentMetadataRecord("g", 7, 0L));
        print("regex", GroupCoordinatorRecordHelpers.newConsumerGroupRegularExpressionRecord("g", "t.*",
            new ResolvedRegularExpression(Set.of("u", "t", "s"), 4L, 5L)));
        print("regex-nothing", GroupCoordinatorRecordHelpers.newConsumerGroupRegularExpressionRecord("g", "x",
            ResolvedRegularExpression.EMPTY));
    }

    private static void tombstones() {
        print("member-gone", GroupCoordinatorRecordHelpers.newConsumerGroupMemberSubscriptionTombstoneRecord("g", "m"));
        print("current-gone", GroupCoordinatorRecordHelpers.newConsumerGroupCurrentAssignmentTombstoneRecord("g", "m"));
        print("target-gone", GroupCoordinatorRecordHelpers.newConsumerGroupTargetAssignmentTombstoneRecord("g", "m"));
        print("target-epoch-gone",
            GroupCoordinatorRecordHelpers.newConsumerGroupTargetAssignmentMetadataTombstoneRecord("g"));
        print("epoch-gone", GroupCoordinatorRecordHelpers.newConsumerGroupEpochTombstoneRecord("g"));
        print("topics-gone", GroupCoordinatorRecordHelpers.newConsumerGroupSubscriptionMetadataTombstoneRecord("g"));
        print("regex-gone", GroupCoordinatorRecordHelpers.newConsumerGroupRegularExpressionTombstone("g", "t.*"));
    }

    private static void hashes() {
        Image image = new Image();
        image.topics.put("t", new Topic("t", FIRST, 1));
        image.topics.put("a topic", new Topic("a topic", SECOND, 300));
        image.topics.put("\u00fcnic\u00f6de \ud83d\ude00", new Topic("\u00fcnic\u00f6de \ud83d\ude00", FIRST, 3));
        Map<String, Long> all = new HashMap<>();
        for (String name : List.of("t", "a topic", "\u00fcnic\u00f6de \ud83d\ude00")) {
            long hash = Utils.computeTopicHash(name, image);
            all.put(name, hash);
            out.println("topic-hash-" + all.size() + " " + hash);
        }
        out.println("topic-hash-unknown " + Utils.computeTopicHash("unknown", image));
        out.println("group-hash-1 " + Utils.computeGroupHash(Map.of("t", all.get("t"))));
        out.println("group-hash-all " + Utils.computeGroupHash(all));
        out.println("group-hash-none " + Utils.computeGroupHash(Map.of()));
    }

    private record Topic(String name, Uuid id, int partitionCount) implements CoordinatorMetadataImage.TopicMetadata {
        @Override
        public List<String> partitionRacks(int partition) {
            return new ArrayList<>();
        }
    }

    private static class Image implements CoordinatorMetadataImage {
        final Map<String, TopicMetadata> topics = new HashMap<>();

        @Override
        public Set<Uuid> topicIds() {
            return Set.of();
        }

        @Override
        public Set<String> topicNames() {
            return topics.keySet();
        }

        @Override
        public Optional<TopicMetadata> topicMetadata(String name) {
            return Optional.ofNullable(topics.get(name));
        }

        @Override
        public Optional<TopicMetadata> topicMetadata(Uuid id) {
            return Optional.empty();
        }

        @Override
        public CoordinatorMetadataDelta emptyDelta() {
            return null;
        }

        @Override
        public long version() {
            return 1;
        }

        @Override
        public boolean isEmpty() {
            return topics.isEmpty();
        }
    }
}
