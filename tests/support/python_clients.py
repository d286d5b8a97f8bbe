"""kafka-python with its defaults, in a process of its own: a producer, and a group member that reads what it wrote.

`python -m tests.support.python_clients BOOTSTRAP TOPIC` works until its stdin ends, then reads to the end, and prints
how many records were acknowledged. It fails with a traceback on any error that the library reports.
"""

import subprocess
import sys
import threading
import time
from pathlib import Path

from kafka import KafkaConsumer, KafkaProducer

ROOT = Path(__file__).resolve().parents[2]
IDLE_S = 30


class PythonClients:
    """The process, from a test."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        command = [sys.executable, "-m", "tests.support.python_clients", bootstrap, topic]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def finish(self) -> int:
        """End it; every acknowledged record was read, once and in order. How many there were."""
        try:
            out, err = self._process.communicate(timeout=90)
        finally:
            self._process.kill()
        assert self._process.returncode == 0, err[-5000:]
        return int(out)


class Run:
    """One run in the process."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self.bootstrap = bootstrap.split(",")
        self.topic = topic
        self.sent = 0
        self.stop = threading.Event()
        self.failed: list[BaseException] = []

    def produce(self) -> None:
        """One record after the other."""
        try:
            producer = KafkaProducer(bootstrap_servers=self.bootstrap, enable_idempotence=True)
            while not self.stop.is_set():
                producer.send(self.topic, b"%d" % self.sent).get(60)
                self.sent += 1
            producer.close()
        except BaseException as error:
            self.failed.append(error)

    def consume(self, producing: threading.Thread) -> None:
        """Everything, in order."""
        consumer = KafkaConsumer(
            self.topic, bootstrap_servers=self.bootstrap, group_id="python", auto_offset_reset="earliest"
        )
        read, moved = 0, time.perf_counter()
        while producing.is_alive() or read < self.sent:
            for messages in consumer.poll(200).values():
                for message in messages:
                    assert int(message.value) == read, f"{message.value!r} at {message.offset}, not {read}"
                    read, moved = read + 1, time.perf_counter()
            assert producing.is_alive() or time.perf_counter() < moved + IDLE_S, f"{read} of {self.sent}"
        consumer.close()


def main() -> int:
    """Until stdin ends."""
    run = Run(*sys.argv[1:])
    producing = threading.Thread(target=run.produce)
    producing.start()
    threading.Thread(target=lambda: (sys.stdin.read(), run.stop.set()), daemon=True).start()
    run.consume(producing)
    if run.failed:
        raise run.failed[0]
    print(run.sent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
