// franz-go as an application uses it: `franz SCENARIO BOOTSTRAP TOPIC` prints "passed" or says what went wrong.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	partitions = 3
	count      = 300
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "franz roundtrip|transactions BOOTSTRAP TOPIC")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	scenario := map[string]func(context.Context, string, string) error{
		"roundtrip": roundtrip, "transactions": transactions,
	}[os.Args[1]]
	if err := scenario(ctx, os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("passed")
}

// roundtrip creates a topic, writes it with every codec, and reads it as a group of two members.
func roundtrip(ctx context.Context, bootstrap, topic string) error {
	client, err := kgo.NewClient(kgo.SeedBrokers(bootstrap))
	if err != nil {
		return err
	}
	defer client.Close()
	admin := kadm.NewClient(client)
	if _, err := admin.CreateTopic(ctx, partitions, 1, nil, topic); err != nil {
		return fmt.Errorf("create: %w", err)
	}
	codecs := []kgo.CompressionCodec{
		kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression(),
	}
	for number, codec := range codecs {
		if err := produce(ctx, bootstrap, topic, number, codec); err != nil {
			return fmt.Errorf("produce with codec %d: %w", number, err)
		}
	}
	if err := consumeAsGroup(ctx, bootstrap, topic, topic+"-group", count*len(codecs)); err != nil {
		return fmt.Errorf("consume: %w", err)
	}
	return clean(ctx, admin, topic, topic+"-group", count*len(codecs))
}

func produce(ctx context.Context, bootstrap, topic string, round int, codec kgo.CompressionCodec) error {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(bootstrap), kgo.ProducerBatchCompression(codec), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		return err
	}
	defer client.Close()
	records := make([]*kgo.Record, count)
	for number := range records {
		records[number] = &kgo.Record{
			Topic:     topic,
			Partition: int32(number % partitions),
			Key:       fmt.Appendf(nil, "key %d", number),
			Value:     fmt.Appendf(nil, "%d/%d", round, number),
			Headers:   []kgo.RecordHeader{{Key: "round", Value: fmt.Appendf(nil, "%d", round)}},
		}
	}
	return client.ProduceSync(ctx, records...).FirstErr()
}

func consumeAsGroup(ctx context.Context, bootstrap, topic, group string, want int) error {
	members := make([]*kgo.Client, 2)
	for number := range members {
		member, err := kgo.NewClient(
			kgo.SeedBrokers(bootstrap), kgo.ConsumerGroup(group), kgo.ConsumeTopics(topic), kgo.DisableAutoCommit(),
			kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchMaxWait(100*time.Millisecond))
		if err != nil {
			return err
		}
		defer member.Close()
		members[number] = member
	}
	seen := map[string]bool{}
	for len(seen) < want {
		for _, member := range members {
			turn, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
			fetches := member.PollFetches(turn)
			cancel()
			if ctx.Err() != nil {
				return fmt.Errorf("%d of %d records", len(seen), want)
			}
			fetches.EachRecord(func(record *kgo.Record) {
				if len(record.Headers) == 1 {
					seen[string(record.Value)] = true
				}
			})
			if err := member.CommitUncommittedOffsets(ctx); err != nil && fetches.NumRecords() > 0 {
				continue // a rebalance came between: what is read again counts once
			}
		}
	}
	return nil
}

func clean(ctx context.Context, admin *kadm.Client, topic, group string, want int) error {
	ends, err := admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return err
	}
	total := int64(0)
	ends.Each(func(one kadm.ListedOffset) { total += one.Offset })
	if total != int64(want) {
		return fmt.Errorf("%d records in the log, not %d", total, want)
	}
	if _, err := admin.FetchOffsets(ctx, group); err != nil {
		return fmt.Errorf("offsets: %w", err)
	}
	for {
		_, err := admin.DeleteGroup(ctx, group)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return fmt.Errorf("delete group: %w", err)
		}
		time.Sleep(50 * time.Millisecond) // the members are on their way out
	}
	if _, err := admin.DeleteTopic(ctx, topic); err != nil {
		return fmt.Errorf("delete topic: %w", err)
	}
	return nil
}

// transactions commits two and aborts one between them; a reader of what is committed sees nothing of that one.
func transactions(ctx context.Context, bootstrap, topic string) error {
	client, err := kgo.NewClient(
		kgo.SeedBrokers(bootstrap), kgo.TransactionalID(topic+"-id"), kgo.DefaultProduceTopic(topic),
		kgo.AllowAutoTopicCreation())
	if err != nil {
		return err
	}
	defer client.Close()
	for _, value := range []string{"first", "aborted", "second"} {
		if err := client.BeginTransaction(); err != nil {
			return err
		}
		if err := client.ProduceSync(ctx, kgo.StringRecord(value)).FirstErr(); err != nil {
			return fmt.Errorf("produce %s: %w", value, err)
		}
		if err := client.EndTransaction(ctx, kgo.TransactionEndTry(value != "aborted")); err != nil {
			return fmt.Errorf("end %s: %w", value, err)
		}
	}
	reader, err := kgo.NewClient(
		kgo.SeedBrokers(bootstrap), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return err
	}
	defer reader.Close()
	var seen []string
	for len(seen) < 2 {
		fetches := reader.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return err
		}
		fetches.EachRecord(func(record *kgo.Record) { seen = append(seen, string(record.Value)) })
	}
	if len(seen) != 2 || seen[0] != "first" || seen[1] != "second" {
		return fmt.Errorf("read %v", seen)
	}
	return nil
}
