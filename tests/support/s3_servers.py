"""Real S3 servers for tests, each a process on a loopback port: moto always, versitygw where Go is present."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tests.support.go_tools import install, possible

VERSITYGW = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"

REGION = "us-east-1"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "tidelog-tests",
    "AWS_SECRET_ACCESS_KEY": "tidelog-tests-secret",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}
"""What a process needs to use the servers: set it in the test (`monkeypatch.setenv`) and for broker processes."""

START_TIMEOUT_S = 60

#: moto looks at the condition of a PUT and writes in two steps: of racing writers two could win.
_MOTO = """
import sys
import threading
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer
lock, put_object = threading.Lock(), S3Response.put_object
def put_one_at_a_time(self):
    with lock:
        return put_object(self)
S3Response.put_object = put_one_at_a_time
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class S3Server:
    """A running server. `durable`: it survives its own restart and keeps every promise of the port."""

    name: str
    host: str
    port: int
    durable: bool

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}"

    def uri(self, bucket: str, prefix: str = "", *, client: str = "obstore", endpoint: str | None = None) -> str:
        """The storage URI of a bucket here; `endpoint` where a proxy stands in front."""
        where = quote(endpoint or self.endpoint, safe="")
        return f"s3://{bucket}/{prefix}?region={REGION}&endpoint={where}&client={client}"

    def make_bucket(self, bucket: str) -> str:
        """Creates a bucket and returns its name."""
        client(self.endpoint).create_bucket(Bucket=bucket)
        return bucket


def client(endpoint: str):  # type: ignore[no-untyped-def]  # boto3 has no types
    """A plain boto3 client, for what tests need beside the store under test."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=REGION,
        aws_access_key_id=ENVIRONMENT["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 3}),
    )


@contextlib.contextmanager
def moto() -> Iterator[S3Server]:
    """moto's server. Weak: it verifies no checksum, and If-Match does not count for multi-part uploads."""
    process = subprocess.Popen(
        [sys.executable, "-c", _MOTO],
        stdin=subprocess.PIPE,  # it ends when this closes, so also when the tests are killed
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with _ending(process):
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield S3Server("moto", "127.0.0.1", port, durable=False)


@contextlib.contextmanager
def versitygw(directory: Path) -> Iterator[S3Server]:
    """versitygw over `directory`, a durable S3 server; starting it again over the same directory finds the objects."""
    binary = build_versitygw()
    port = free_port()
    process = subprocess.Popen(
        [binary, "--port", f"127.0.0.1:{port}", "--region", REGION, "--keep-alive", "--quiet", "posix", str(directory)],
        env={
            "PATH": os.defpath,
            "ROOT_ACCESS_KEY": ENVIRONMENT["AWS_ACCESS_KEY_ID"],
            "ROOT_SECRET_KEY": ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with _ending(process):
        _wait_for_answer(process, port)
        yield S3Server("versitygw", "127.0.0.1", port, durable=True)


def versitygw_possible() -> bool:
    """Whether this machine has it or can build it."""
    return possible(VERSITYGW)


def build_versitygw() -> Path:
    """The path of the binary, built once per version into `.cache/`; takes minutes, so allow the first test for it."""
    return install(VERSITYGW)


@contextlib.contextmanager
def _ending(process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for_answer(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S  # noqa: TID251
    while time.monotonic() < deadline:  # noqa: TID251
        assert process.poll() is None, f"server ended with {process.returncode}"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1).close()
        except urllib.error.HTTPError as answer:
            answer.close()
            return  # it refuses the anonymous request: it is there
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise TimeoutError(f"no answer on port {port}")
