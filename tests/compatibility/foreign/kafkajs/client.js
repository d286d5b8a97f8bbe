// KafkaJS as an application uses it: `node client.js SCENARIO BOOTSTRAP TOPIC` prints "passed" or says what went wrong.
"use strict"

const { Kafka, CompressionTypes, logLevel } = require("kafkajs")

const PARTITIONS = 3
const COUNT = 300

function kafka(bootstrap) {
  return new Kafka({ clientId: "kafkajs", brokers: [bootstrap], logLevel: logLevel.ERROR })
}

// Creates a topic, writes it with the codecs that KafkaJS has built in, and reads it as a group of two members.
async function roundtrip(bootstrap, topic) {
  const client = kafka(bootstrap)
  const admin = client.admin()
  await admin.connect()
  await admin.createTopics({ topics: [{ topic, numPartitions: PARTITIONS, replicationFactor: 1 }] })
  const producer = client.producer({ idempotent: true, maxInFlightRequests: 1 })
  await producer.connect()
  const codecs = [CompressionTypes.None, CompressionTypes.GZIP]
  for (const compression of codecs) {
    const messages = Array.from({ length: COUNT }, (_, number) => ({
      key: `key ${number}`,
      value: `${compression}/${number}`,
      partition: number % PARTITIONS,
      headers: { round: String(compression) },
    }))
    await producer.send({ topic, compression, messages })
  }
  await producer.disconnect()
  const group = `${topic}-group`
  await consumeAsGroup(client, topic, group, COUNT * codecs.length)
  const offsets = await admin.fetchTopicOffsets(topic)
  const total = offsets.reduce((sum, one) => sum + Number(one.high), 0)
  if (total !== COUNT * codecs.length) throw new Error(`${total} records in the log`)
  await admin.deleteGroups([group])
  await admin.deleteTopics({ topics: [topic] })
  await admin.disconnect()
}

async function consumeAsGroup(client, topic, groupId, want) {
  const members = [client.consumer({ groupId }), client.consumer({ groupId })]
  const seen = new Set()
  await new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`${seen.size} of ${want} records`)), 60000)
    const eachMessage = async ({ message }) => {
      seen.add(message.value.toString())
      if (seen.size === want) {
        clearTimeout(late)
        resolve()
      }
    }
    Promise.all(
      members.map(async member => {
        await member.connect()
        await member.subscribe({ topics: [topic], fromBeginning: true })
        await member.run({ eachMessage })
      })
    ).catch(reject)
  })
  for (const member of members) await member.disconnect()
}

// Commits two and aborts one between them; a reader of what is committed sees nothing of that one.
async function transactions(bootstrap, topic) {
  const client = kafka(bootstrap)
  const producer = client.producer({ transactionalId: `${topic}-id`, maxInFlightRequests: 1, idempotent: true })
  await producer.connect()
  for (const value of ["first", "aborted", "second"]) {
    const transaction = await producer.transaction()
    await transaction.send({ topic, messages: [{ value }] })
    await (value === "aborted" ? transaction.abort() : transaction.commit())
  }
  await producer.disconnect()
  const reader = client.consumer({ groupId: `${topic}-group`, readUncommitted: false })
  await reader.connect()
  await reader.subscribe({ topics: [topic], fromBeginning: true })
  const seen = []
  await new Promise((resolve, reject) => {
    const late = setTimeout(() => reject(new Error(`read ${seen}`)), 60000)
    const eachMessage = async ({ message }) => {
      seen.push(message.value.toString())
      if (seen.length === 2) {
        clearTimeout(late)
        resolve()
      }
    }
    reader.run({ eachMessage }).catch(reject)
  })
  await reader.disconnect()
  if (seen.join() !== "first,second") throw new Error(`read ${seen}`)
}

async function main() {
  const [scenario, bootstrap, topic] = process.argv.slice(2)
  await { roundtrip, transactions }[scenario](bootstrap, topic)
  console.log("passed")
  process.exit(0)
}

main().catch(error => {
  console.error(error)
  process.exit(1)
})
