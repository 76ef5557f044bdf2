"""A network of our own: one network namespace a node, in which packets can be dropped."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Sequence

from litefs_celery.emulator.real_config import Host

# Of the range for tests of networks (RFC 2544), which nobody routes.
PREFIX = "198.18"
CONSUL, REDIS, MACHINE = 1, 2, 254
FIRST_NODE = 11
PROGRAMS = ("ip", "nft", "nsenter", "unshare")


def missing_network() -> str:
    """What this machine lacks for such a network; empty where nothing."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found on PATH"
    if os.geteuid() != 0:
        return "network namespaces need root"
    tried = subprocess.run(
        ["unshare", "--net", "nft", "add", "table", "inet", "tried"],
        capture_output=True, text=True, check=False,
    )
    return "" if tried.returncode == 0 else tried.stderr.strip().splitlines()[0]


class Network:
    """
    A hub with Consul's and Redis's addresses, the nodes' namespaces, and a link to this machine.

    A namespace is held by a process that ends with this one, also when that is killed; with the
    last process in it the kernel takes it away, and every interface of it. No name is used that
    another run could use, and no interface touched that is there already.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._tag = uuid.uuid4().hex[:8]
        net = f"{PREFIX}.{int(self._tag[:2], 16)}"
        self._machine = f"{net}.{MACHINE}"
        self._addresses = {"consul": f"{net}.{CONSUL}", "redis": f"{net}.{REDIS}"}
        self.nodes = tuple(names)
        for number, name in enumerate(names, FIRST_NODE):
            self._addresses[name] = f"{net}.{number}"

    def start(self) -> None:
        """Make the namespaces and links."""
        for name in ("hub", *self.nodes):
            self._hold(name)
        self._in("hub", "ip link add bridge0 type bridge")
        for name in ("consul", "redis"):
            self._in("hub", f"ip addr add {self._addresses[name]}/24 dev bridge0")
        self._in("hub", "ip link set bridge0 up")
        device = f"lc{self._tag}"
        self._join(device, "")
        self._in("", f"ip addr add {self._machine}/24 dev {device}")
        self._in("", f"ip link set {device} up")
        for name in self.nodes:
            self._join(f"node-{name}", f"netns {self._pid(name)}")
            self._in(name, f"ip addr add {self._addresses[name]}/24 dev node-{name}")
            self._in(name, f"ip link set dev node-{name} up")

    def stop(self) -> None:
        """Let the namespaces go; what still runs in one keeps it."""
        for holder in self._holders.values():
            holder.kill()
            holder.wait()
            if holder.stdin and holder.stdout:
                holder.stdin.close()
                holder.stdout.close()
        self._holders.clear()

    def host(self, name: str) -> Host:
        """Where a node, ``consul`` or ``redis`` runs."""
        place = name if name in self.nodes else "hub"
        return Host(self._addresses[name], tuple(self._enter(place)))

    def cut(self, name: str, *others: str) -> None:
        """Drop all packets between a node and others, both ways; nobody is told."""
        self._rule(name, "in", f"ip saddr {self._set(others)} drop")
        self._rule(name, "out", f"ip daddr {self._set(others)} drop")

    def reset(self, name: str, *others: str) -> None:
        """
        Answer what a node sends to others with TCP's reset.

        A replica's LiteFS is told so within 15 s, by its first probe, that the primary is gone;
        of dropped packets TCP's keepalive tells it after nine more of them (Go's default).
        """
        to = f"ip daddr {self._set(others)}"
        self._rule(name, "out", f"{to} meta l4proto tcp reject with tcp reset")

    def mend(self, name: str) -> None:
        """Let the packets through again."""
        self._in(name, "nft flush ruleset")

    def _set(self, names: Sequence[str]) -> str:
        return f"{{ {', '.join(self._addresses[name] for name in names)} }}"

    def _rule(self, name: str, way: str, rule: str) -> None:
        hook = {"in": "input", "out": "output"}[way]
        lines = (
            "add table inet cut",
            f"add chain inet cut {way} {{ type filter hook {hook} priority 0; }}",
            f"add rule inet cut {way} {rule}",
        )
        command = [*self._enter(name), "nft", "-f", "-"]
        subprocess.run(command, input="\n".join(lines) + "\n", text=True, check=True)

    def _hold(self, name: str) -> None:
        # cat ends when this process does, with its end of the pipe.
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo made; exec cat"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        )
        self._holders[name] = holder
        assert holder.stdout
        assert holder.stdout.readline() == b"made\n"
        self._in(name, "ip link set lo up")

    def _join(self, device: str, place: str) -> None:
        """A cable from the hub's bridge to a device elsewhere."""
        hub = self._pid("hub")
        port = f"to-{device}"
        self._in("", f"ip link add name {device} {place} type veth peer name {port} netns {hub}")
        self._in("hub", f"ip link set {port} master bridge0 up")

    def _pid(self, name: str) -> int:
        return self._holders[name].pid

    def _enter(self, name: str) -> list[str]:
        # Not `ip netns exec`, which makes a new mount namespace: LiteFS's mounts must be seen.
        return ["nsenter", f"--net=/proc/{self._pid(name)}/ns/net"] if name else []

    def _in(self, name: str, command: str) -> None:
        subprocess.run([*self._enter(name), *command.split()], check=True)
