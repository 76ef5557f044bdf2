"""The brokers the suite runs on, and what tests do to each of them behind the product's back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kombu import Connection
from kombu.exceptions import OperationalError

from worker.fleet import START_TIMEOUT, Process, RedisServer, free_port, wait_until

# Debian's program on PATH changes to the user of the system's own broker; this one does not.
DEBIAN = Path("/usr/lib/rabbitmq/bin")
# Whole messages as Redis holds them, or the bodies of such on AMQP.
GARBAGE = (
    b"\xff\xfe not text", b"not json", b'{"hello": 1}', b"[1, 2]", b"5", b"null", b"{}",
    b'{"body": "e30=", "headers": {}, "properties": {}}',
    (
        b'{"body": "!!", "headers": {"task": "x", "id": "y"}, "content-type": "application/json",'
        b' "content-encoding": "utf-8", "properties": {"delivery_tag": "t",'
        b' "body_encoding": "base64",'
        b' "delivery_info": {"exchange": "", "routing_key": "litefs-primary"}}}'
    ),
)


def missing_rabbit() -> list[str]:
    """The programs that RabbitMQ needs and this machine lacks."""
    return [name for name in ("rabbitmq-server", "rabbitmqctl", "epmd") if _program(name) is None]


def _program(name: str) -> str | None:
    own = DEBIAN / name
    return str(own) if own.exists() else shutil.which(name)


def _runs(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


class RedisBroker:
    """Redis, which is the result backend at the same time."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self.url = server.url
        self.start, self.kill, self.stop = server.start, server.kill, server.stop

    def waiting(self, queue: str) -> int:
        """How many messages wait in a queue."""
        count: int = self._server.client().llen(queue)
        return count

    def unacknowledged(self, queue: str) -> int:
        """How many messages of a queue a worker has taken and not acknowledged."""
        count: int = self._server.client().hlen(f"{queue}-unacked")
        return count

    def take_all(self, queue: str) -> list[Any]:
        """Take what waits in a queue out of it, the oldest first."""
        client = self._server.client()
        messages = client.lrange(queue, 0, -1)
        client.delete(queue)
        return messages[::-1]

    def put(self, queue: str, *messages: Any) -> None:
        """Put messages that were taken out into a queue."""
        self._server.client().lpush(queue, *messages)

    put_raw = put

    def forget(self) -> None:
        """Lose everything."""
        self._server.client().flushall()


class RabbitBroker:
    """A RabbitMQ of our own on loopback: one node, quorum queues, no plug-ins."""

    def __init__(self, directory: Path, queues: tuple[str, ...]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        port, epmd_port = free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{port}//"
        self._queues = queues
        self._data = directory / "data"
        (directory / "plugins").write_text("[].\n")
        # How soon the counts of a quorum queue are brought up to date: 5 s by default.
        (directory / "advanced.config").write_text("[{rabbit, [{quorum_tick_interval, 200}]}].\n")
        self._environ = {
            "HOME": str(directory),  # where Erlang's cookie is made
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "litefs@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_MNESIA_BASE": str(self._data),
            "RABBITMQ_LOG_BASE": str(directory),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(directory / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "none"),
            "RABBITMQ_CONFIG_FILE": str(directory / "none"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
        }
        # Started by us, so that RabbitMQ does not start one that stays behind.
        self._epmd = Process(
            [str(_program("epmd")), "-port", str(epmd_port), "-address", "127.0.0.1"],
            directory / "epmd.log",
        )
        self._process = Process(
            [str(_program("rabbitmq-server"))], directory / "rabbitmq.log", self._environ
        )

    @property
    def pid(self) -> int:
        """The id of its first process, which leads their group."""
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._epmd.start()
        self._process.start()
        wait_until(self._answers, START_TIMEOUT, self._process.tail)

    def kill(self) -> None:
        """``kill -9``, and wait until the last of its processes is gone."""
        group = self._process.pid
        self._process.kill()
        wait_until(lambda: not _runs(group), START_TIMEOUT)

    def stop(self) -> None:
        """Stop it."""
        self._process.stop()
        self._epmd.kill()

    def waiting(self, queue: str) -> int:
        """How many messages wait in a queue."""
        with self._connected() as connection, connection.channel() as channel:
            try:
                return int(channel.queue_declare(queue, passive=True).message_count)
            except connection.channel_errors:
                return 0  # it is not there

    def unacknowledged(self, queue: str) -> int:
        """How many messages of a queue a worker has taken and not acknowledged."""
        listed = self.control("list_queues", "name", "messages_unacknowledged")
        counts = {row["name"]: row["messages_unacknowledged"] for row in listed}
        return int(counts.get(queue, 0))

    def control(self, *command: str) -> Any:
        """What rabbitmqctl answers to a command."""
        ended = subprocess.run(
            [str(_program("rabbitmqctl")), "--node", "litefs@localhost", "--quiet",
             "--formatter", "json", *command],
            env={**os.environ, **self._environ}, capture_output=True, text=True, check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return json.loads(ended.stdout) if ended.stdout.strip() else None

    def take_all(self, queue: str) -> list[Any]:
        """Take what waits in a queue out of it, the oldest first."""
        with self._connected() as connection, connection.channel() as channel:
            return list(iter(lambda: channel.basic_get(queue, no_ack=True), None))

    def put(self, queue: str, *messages: Any) -> None:
        """Put messages that were taken out into a queue."""
        with self._connected() as connection, connection.channel() as channel:
            for message in messages:
                channel.basic_publish(message, exchange="", routing_key=queue, mandatory=True)

    def put_raw(self, queue: str, *bodies: bytes) -> None:
        """Put messages of such bodies into a queue."""
        with self._connected() as connection, connection.channel() as channel:
            for body in bodies:
                message = channel.prepare_message(
                    body, content_type="application/json", content_encoding="utf-8"
                )
                channel.basic_publish(message, exchange="", routing_key=queue, mandatory=True)

    def has_noted(self, queue: str) -> bool:
        """Whether the name of a quorum queue is on the disk, so that it survives ``kill -9``."""
        names = self._data.glob("*/quorum/*/names.dets")
        return any(queue.encode() in path.read_bytes() for path in names)

    def forget(self) -> None:
        """Lose all that waits."""
        for queue in self._queues:
            # One that is not there closes the channel.
            with self._connected() as connection, suppress(*connection.channel_errors):
                connection.default_channel.queue_purge(queue)

    def delete(self) -> None:
        """Lose the queues as well."""
        with self._connected() as connection:
            for queue in self._queues:
                connection.default_channel.queue_delete(queue)

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        options = {"confirm_publish": True, "read_timeout": 10}
        with Connection(self.url, transport_options=options) as connection:
            yield connection

    def _answers(self) -> bool:
        try:
            with self._connected() as connection:
                connection.ensure_connection(max_retries=1, interval_start=0, timeout=2)
        except (OSError, OperationalError):
            return False
        return True
