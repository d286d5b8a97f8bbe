// Sarama as an application uses it: `sarama SCENARIO BOOTSTRAP TOPIC` prints "passed" or says what went wrong.
package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/IBM/sarama"
)

const (
	partitions = 3
	count      = 300
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "sarama roundtrip|transactions BOOTSTRAP TOPIC")
		os.Exit(2)
	}
	scenario := map[string]func([]string, string) error{
		"roundtrip": roundtrip, "transactions": transactions,
	}[os.Args[1]]
	if err := scenario([]string{os.Args[2]}, os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("passed")
}

func config() *sarama.Config {
	config := sarama.NewConfig()
	config.Version = sarama.MaxVersion
	config.Producer.Return.Successes = true
	config.Producer.RequiredAcks = sarama.WaitForAll
	config.Producer.Idempotent = true
	config.Net.MaxOpenRequests = 1
	config.Consumer.Offsets.Initial = sarama.OffsetOldest
	return config
}

// roundtrip creates a topic, writes it with every codec, and reads it as a group of two members.
func roundtrip(brokers []string, topic string) error {
	admin, err := sarama.NewClusterAdmin(brokers, config())
	if err != nil {
		return err
	}
	defer admin.Close()
	detail := &sarama.TopicDetail{NumPartitions: partitions, ReplicationFactor: 1}
	if err := admin.CreateTopic(topic, detail, false); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	codecs := []sarama.CompressionCodec{
		sarama.CompressionNone, sarama.CompressionGZIP, sarama.CompressionSnappy, sarama.CompressionLZ4,
		sarama.CompressionZSTD,
	}
	for round, codec := range codecs {
		if err := produce(brokers, topic, round, codec); err != nil {
			return fmt.Errorf("produce with %s: %w", codec, err)
		}
	}
	group := topic + "-group"
	if err := consumeAsGroup(brokers, topic, group, count*len(codecs)); err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	if err := admin.DeleteConsumerGroup(group); err != nil {
		return fmt.Errorf("delete group: %w", err)
	}
	return admin.DeleteTopic(topic)
}

func produce(brokers []string, topic string, round int, codec sarama.CompressionCodec) error {
	settings := config()
	settings.Producer.Compression = codec
	producer, err := sarama.NewSyncProducer(brokers, settings)
	if err != nil {
		return err
	}
	defer producer.Close()
	messages := make([]*sarama.ProducerMessage, count)
	for number := range messages {
		messages[number] = &sarama.ProducerMessage{
			Topic:   topic,
			Key:     sarama.StringEncoder(fmt.Sprintf("key %d", number)),
			Value:   sarama.StringEncoder(fmt.Sprintf("%d/%d", round, number)),
			Headers: []sarama.RecordHeader{{Key: []byte("round"), Value: []byte("x")}},
		}
	}
	return producer.SendMessages(messages)
}

// counter is a member of the group; all members share what they have seen.
type counter struct {
	lock *sync.Mutex
	seen map[string]bool
	done func()
	want int
}

func (counter) Setup(sarama.ConsumerGroupSession) error   { return nil }
func (counter) Cleanup(sarama.ConsumerGroupSession) error { return nil }

func (c counter) ConsumeClaim(session sarama.ConsumerGroupSession, claim sarama.ConsumerGroupClaim) error {
	for message := range claim.Messages() {
		c.lock.Lock()
		c.seen[string(message.Value)] = true
		if len(c.seen) == c.want {
			c.done()
		}
		c.lock.Unlock()
		session.MarkMessage(message, "")
	}
	return nil
}

func consumeAsGroup(brokers []string, topic, group string, want int) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	member := counter{&sync.Mutex{}, map[string]bool{}, cancel, want}
	var running sync.WaitGroup
	for range 2 {
		client, err := sarama.NewConsumerGroup(brokers, group, config())
		if err != nil {
			return err
		}
		running.Add(1)
		go func() {
			defer running.Done()
			defer client.Close()
			for ctx.Err() == nil {
				if err := client.Consume(ctx, []string{topic}, member); err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
			}
		}()
	}
	running.Wait()
	if len(member.seen) != want {
		return fmt.Errorf("%d of %d records", len(member.seen), want)
	}
	return nil
}

// transactions commits two and aborts one between them; a reader of what is committed sees nothing of that one.
func transactions(brokers []string, topic string) error {
	settings := config()
	settings.Producer.Transaction.ID = topic + "-id"
	settings.Producer.Transaction.Timeout = 30 * time.Second
	producer, err := sarama.NewSyncProducer(brokers, settings)
	if err != nil {
		return err
	}
	defer producer.Close()
	for _, value := range []string{"first", "aborted", "second"} {
		if err := producer.BeginTxn(); err != nil {
			return err
		}
		message := &sarama.ProducerMessage{Topic: topic, Value: sarama.StringEncoder(value)}
		if _, _, err := producer.SendMessage(message); err != nil {
			return fmt.Errorf("produce %s: %w", value, err)
		}
		end := producer.CommitTxn
		if value == "aborted" {
			end = producer.AbortTxn
		}
		if err := end(); err != nil {
			return fmt.Errorf("end %s: %w", value, err)
		}
	}
	settings = config()
	settings.Consumer.IsolationLevel = sarama.ReadCommitted
	reader, err := sarama.NewConsumer(brokers, settings)
	if err != nil {
		return err
	}
	defer reader.Close()
	claim, err := reader.ConsumePartition(topic, 0, sarama.OffsetOldest)
	if err != nil {
		return err
	}
	defer claim.Close()
	for _, value := range []string{"first", "second"} {
		select {
		case message := <-claim.Messages():
			if string(message.Value) != value {
				return fmt.Errorf("read %s, not %s", message.Value, value)
			}
		case <-time.After(30 * time.Second):
			return fmt.Errorf("%s was not read", value)
		}
	}
	return nil
}
