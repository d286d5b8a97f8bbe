import java.time.Duration;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Random;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.ConsumerRecords;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.clients.consumer.OffsetAndMetadata;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.KafkaException;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.errors.AuthorizationException;
import org.apache.kafka.common.errors.InvalidProducerEpochException;
import org.apache.kafka.common.errors.OutOfOrderSequenceException;
import org.apache.kafka.common.errors.ProducerFencedException;
import org.apache.kafka.common.serialization.StringDeserializer;
import org.apache.kafka.common.serialization.StringSerializer;

/** `bank_worker.py` with Kafka's own client: `java BankWorker BOOTSTRAP TRANSACTIONAL_ID SEED`. */
public class BankWorker {
    public static void main(String[] arguments) {
        Properties reading = new Properties();
        reading.put("bootstrap.servers", arguments[0]);
        reading.put("group.id", "bank");
        reading.put("auto.offset.reset", "earliest");
        reading.put("enable.auto.commit", "false");
        reading.put("isolation.level", "read_committed");
        reading.put("session.timeout.ms", "6000");
        reading.put("heartbeat.interval.ms", "500");
        reading.put("max.poll.records", "5");
        Properties writing = new Properties();
        writing.put("bootstrap.servers", arguments[0]);
        writing.put("transactional.id", arguments[1]);
        writing.put("transaction.timeout.ms", "10000");
        Random random = new Random(Long.parseLong(arguments[2]));
        String name = arguments[1] + "-" + ProcessHandle.current().pid();
        int count = 0;
        KafkaConsumer<String, String> consumer =
            new KafkaConsumer<>(reading, new StringDeserializer(), new StringDeserializer());
        KafkaProducer<String, String> producer =
            new KafkaProducer<>(writing, new StringSerializer(), new StringSerializer());
        consumer.subscribe(List.of("orders"));
        producer.initTransactions();
        while (true) {
            ConsumerRecords<String, String> records = consumer.poll(Duration.ofMillis(500));
            if (records.isEmpty()) {
                System.out.println("idle");
                continue;
            }
            String attempt = name + "-" + ++count;
            StringBuilder numbers = new StringBuilder();
            Map<TopicPartition, OffsetAndMetadata> after = new HashMap<>();
            Map<TopicPartition, Long> first = new HashMap<>();
            for (ConsumerRecord<String, String> one : records) {
                TopicPartition where = new TopicPartition(one.topic(), one.partition());
                numbers.append(numbers.length() == 0 ? "" : ", ").append(order(one)[0]);
                first.putIfAbsent(where, one.offset());
                after.put(where, new OffsetAndMetadata(one.offset() + 1));
            }
            System.out.println("begin " + attempt + " [" + numbers + "]");
            try {
                producer.beginTransaction();
                for (ConsumerRecord<String, String> one : records) {
                    long[] order = order(one);
                    write(producer, attempt, order[0], order[1], -order[3]);
                    write(producer, attempt, order[0], order[2], order[3]);
                }
                producer.sendOffsetsToTransaction(after, consumer.groupMetadata());
                if (random.nextInt(10) == 0) {
                    producer.flush();
                    abort(producer, consumer, attempt, first);
                    continue;
                }
                producer.commitTransaction();
                System.out.println("committed " + attempt);
            } catch (ProducerFencedException | InvalidProducerEpochException | OutOfOrderSequenceException
                     | AuthorizationException error) {
                System.out.println("failed " + attempt + " " + error);
                System.exit(1);
            } catch (KafkaException error) {
                System.out.println("failed " + attempt + " " + error);
                try {
                    abort(producer, consumer, attempt, first);
                } catch (KafkaException again) {
                    System.out.println("failed " + attempt + " " + again);
                    System.exit(1);
                }
            }
        }
    }

    static long[] order(ConsumerRecord<String, String> one) {
        String[] words = one.value().replace("[", "").replace("]", "").split(", ");
        long[] order = new long[words.length];
        for (int i = 0; i < words.length; i++) {
            order[i] = Long.parseLong(words[i]);
        }
        return order;
    }

    static void write(KafkaProducer<String, String> producer, String attempt, long number, long account, long amount) {
        String entry = "[\"" + attempt + "\", " + number + ", " + account + ", " + amount + "]";
        producer.send(new ProducerRecord<>("ledger", Long.toString(account), entry));
    }

    static void abort(KafkaProducer<String, String> producer, KafkaConsumer<String, String> consumer, String attempt,
                      Map<TopicPartition, Long> first) {
        producer.abortTransaction();
        System.out.println("aborted " + attempt);
        first.forEach((where, offset) -> {
            if (consumer.assignment().contains(where)) {
                consumer.seek(where, offset);
            }
        });
    }
}
