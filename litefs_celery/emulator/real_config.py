"""What real LiteFS and Consul are configured with, run under, and cleaned up by."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Every process of a cluster carries this variable, with the cluster's token.
MARKER = "LITEFS_CELERY_CLUSTER"
# Listening ports lie below Linux's ephemeral range, which starts at 32768: an outgoing
# connection can then never sit on the port of a node that is down for a moment.
_PORTS = range(20_000, 32_000)
# Consul's own default: long enough to show the gap between two primaries.
_LOCK_DELAY = "1s"
# The first Consul that knows, and by default opens, the port of gRPC over TLS and peering.
_CONSUL_PEERING = (1, 14)
# The reaper's only cost is one system call per look.
_REAPER_INTERVAL = 0.2
# As long as a killed process may take to go before the reaper gives up.
_REAPER_TIMEOUT = 10.0
# Enough for LiteFS's last error and what led to it.
_LOG_LINES = 15


@dataclass(frozen=True)
class Host:
    """
    Where a program runs: its address, and what its command line begins with to run there.
    """

    address: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()


def missing_programs() -> tuple[str, ...]:
    """
    Return the names of what a real cluster needs and this machine lacks; empty when it can run.
    """
    missing = [name for name in ("litefs", "consul") if shutil.which(name) is None]
    if _fusermount() is None:
        missing.append("fusermount3")
    if not Path("/dev/fuse").exists():
        missing.append("/dev/fuse")
    return tuple(missing)


def free_ports(count: int) -> list[int]:
    """
    Return so many different loopback ports on which nothing listens; OSError when none is left.
    """
    ports: list[int] = []
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    message = f"no {count} free ports on 127.0.0.1 in {_PORTS.start}..{_PORTS.stop}"
    raise OSError(message)


def litefs_yaml(
    *, mount: Path, data: Path, name: str, address: str, consul_url: str, key: str, ttl: float
) -> str:
    """
    Return the text of one node's litefs.yml; `address` with the port, `ttl` in seconds.
    """
    consul = {"url": consul_url, "key": key, "ttl": f"{round(ttl * 1000)}ms"}
    lease = {"type": "consul", "hostname": name, "advertise-url": f"http://{address}"}
    settings = {
        "fuse": {"dir": str(mount)},
        "data": {"dir": str(data)},
        "http": {"addr": address},
        "log": {"timestamp": True},
        "lease": lease
        | {"candidate": True, "promote": False}
        | {"consul": consul | {"lock-delay": _LOCK_DELAY}},
    }
    return json.dumps(settings, indent=2)  # which is YAML, too


def consul_version() -> tuple[int, int]:
    """
    Return major and minor of the `consul` on PATH, whose name for an unknown setting is an error.
    """
    told = subprocess.check_output(["consul", "version", "-format=json"], text=True)
    major, minor, *_ = json.loads(told)["Version"].split(".")
    return int(major), int(minor)


def consul_json(
    *, http: int, server: int, serf: int, ttl: float, version: tuple[int, int]
) -> str:
    """
    Return the text of Consul's configuration, a key-value store; `ttl` in seconds.
    """
    off = {"enabled": False}
    ports = {"http": http, "server": server, "serf_lan": serf}
    unused = dict.fromkeys(("dns", "https", "grpc", "serf_wan"), -1)
    newer = {}
    if version >= _CONSUL_PEERING:
        unused["grpc_tls"] = -1
        newer["peering"] = off
    # Consul refuses sessions shorter than this, by default 10 s; a test may want to be faster.
    settings = {
        "ports": ports | unused,
        "session_ttl_min": f"{round(ttl * 1000)}ms",
        "ui_config": off,
        "connect": off,
        "disable_update_check": True,
        "log_level": "INFO",
    }
    return json.dumps(settings | newer, indent=2)


class Program:
    """
    One child process with its log file, in a session of its own so that Ctrl-C is ours alone.
    """

    def __init__(self, argv: list[str], log: Path, token: str) -> None:
        self.log = log
        self._argv = argv
        self._token = token
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """
        Return the process id while it lives, otherwise None.
        """
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """
        Start the process and append its output to the log; OSError when it cannot run.
        """
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._argv,
                env=_environment(self._token),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def signal(self, number: signal.Signals) -> None:
        """
        Send a signal; nothing happens when the process is gone.
        """
        if self._process:
            self._process.send_signal(number)

    def wait(self, timeout: float | None) -> bool:
        """
        Return True when it has ended within `timeout` seconds (None: however long it takes).
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process is None or self._process.wait(timeout) is not None
        return False

    def explain(self, what: str) -> str:
        """
        Return an error's text: what happened, whether the process lives, where its log ends.
        """
        code = self._process.poll() if self._process else None
        state = "never started" if self._process is None else f"exited with {code}"
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        head = f"{what}: {'still running' if self.pid else state}; the end of {self.log}:"
        return "\n".join([head, *(f"  {line}" for line in lines[-_LOG_LINES:])])


def mounts_below(root: Path) -> list[Path]:
    """
    Return the mount points at or below `root`, innermost first, without touching them.
    """
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    found = [Path(_unescaped(line.split(" ")[4])) for line in text.splitlines()]
    return [path for path in reversed(found) if path.is_relative_to(root)]


def lazy_unmount(root: Path) -> None:
    """
    Take away every mount at or below `root`, dead ones and ones in use too.
    """
    program = _fusermount()
    for mount in mounts_below(root) if program else ():
        subprocess.run((str(program), "-u", "-z", str(mount)), check=False, capture_output=True)


def start_reaper(root: Path, token: str) -> subprocess.Popen[bytes]:
    """
    Start a process that ends the cluster if this process ends without having done so.

    PR_SET_PDEATHSIG would be shorter, but it fires when the *thread* that started the
    child ends, leaves the mounts, and needs code run between fork and exec.
    """
    argv = (sys.executable, "-I", "-S", __file__, str(os.getpid()), token, str(root))
    null = subprocess.DEVNULL
    return subprocess.Popen(
        argv, stdin=null, stdout=null, stderr=null, cwd="/", start_new_session=True
    )


def _environment(token: str) -> dict[str, str]:
    # A LITEFS_CLOUD_TOKEN or CONSUL_NAMESPACE of the user's must not reach a throw-away cluster.
    foreign = ("LITEFS_", "CONSUL_", "FLY_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return kept | {MARKER: token}


def _fusermount() -> str | None:
    return shutil.which("fusermount3") or shutil.which("fusermount")


def _unescaped(path: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, char)
    return path


def _marked(token: str) -> Iterator[int]:
    mark = f"{MARKER}={token}".encode()
    for directory in Path("/proc").glob("[0-9]*"):
        # A process that has just ended, or one of somebody else's.
        with contextlib.suppress(OSError):
            if mark in (directory / "environ").read_bytes().split(b"\0"):
                yield int(directory.name)


def _reap(parent: int, token: str, root: Path) -> None:
    while os.getppid() == parent:
        time.sleep(_REAPER_INTERVAL)
    deadline = time.monotonic() + _REAPER_TIMEOUT
    while (pids := list(_marked(token))) and time.monotonic() < deadline:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_REAPER_INTERVAL / 10)
    lazy_unmount(root)


if __name__ == "__main__":
    _reap(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
