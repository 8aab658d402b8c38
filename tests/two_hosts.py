"""Two hosts on one machine: network namespaces joined by a veth pair, as slow as asked for.

The rate is limited by tbf, a queue of Linux. The delay comes from a relay in each namespace: it
takes packets from a tun device and passes them on, later, through a TCP connection over the pair.

    python tests/two_hosts.py 1|2 DELAY

is such a relay, in the namespace of host 1 or 2; DELAY in seconds.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import NamedTuple

_PAIR, _TUNNEL = "10.77.0", "10.78.0"  # networks of the veth pair and of the relays
_PORT, _MTU = 7077, 60000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


class Hosts(NamedTuple):
    """What a program on one of the hosts needs; hosts are 0 and 1."""

    names: tuple[str, str]
    addresses: tuple[str, str]
    interface: str

    def command(self, host: int, *command: str) -> list[str]:
        """A command that runs on a host."""
        return ["ip", "netns", "exec", self.names[host], *command]


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def why_not() -> str:
    """Why there cannot be two hosts; "": there can."""
    missing = [program for program in ("ip", "tc") if shutil.which(program) is None]
    if missing:
        return f"two hosts need {' and '.join(missing)} (Debian's package iproute2)"
    try:
        with two_hosts("1gbit", 0.0001):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        told = getattr(error, "stderr", None) or str(error)
        return f"network namespaces are not allowed here: {told.strip()}"


@contextmanager
def two_hosts(rate: str = "", delay: float = 0.0) -> Iterator[Hosts]:
    """Two hosts, for the time within it; needs root.

    rate: of each direction, as tc takes it ("1gbit"); "": as fast as the machine. delay: of a
    packet, in seconds. Raises OSError or CalledProcessError where that is not allowed.
    """
    names = tuple(f"charrnn-{os.getpid()}-{host}" for host in (1, 2))
    relays: list[subprocess.Popen[str]] = []
    try:
        for name in names:
            _run("ip", "netns", "add", name)
        ends = ("pair", "netns", names[0], "type", "veth", "peer", "name", "pair", "netns")
        _run("ip", "link", "add", *ends, names[1])
        for host, name in enumerate(names, 1):
            _run("ip", "-n", name, "addr", "add", f"{_PAIR}.{host}/24", "dev", "pair")
            for device in ("lo", "pair"):
                _run("ip", "-n", name, "link", "set", device, "up")
            if rate:
                queue = ("tbf", "rate", rate, "burst", "256kb", "latency", "400ms")
                _run("tc", "-n", name, "qdisc", "add", "dev", "pair", "root", *queue)
        network, interface = _PAIR, "pair"
        if delay:
            network, interface = _TUNNEL, "tunnel"
            for host, name in enumerate(names, 1):
                relay = [sys.executable, __file__, str(host), str(delay)]
                relays.append(
                    subprocess.Popen(
                        ["ip", "netns", "exec", name, *relay], stdout=subprocess.PIPE, text=True
                    )
                )
            for process in relays:
                if process.stdout is None or process.stdout.readline() != "ready\n":
                    raise OSError("a relay did not start")
        yield Hosts((names[0], names[1]), (f"{network}.1", f"{network}.2"), interface)
    finally:
        for process in relays:
            process.kill()
            process.communicate()
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _tunnel(host: int) -> int:
    """The descriptor of a new tun device with the host's address."""
    import fcntl  # not on Windows

    device = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", b"tunnel", _IFF_TUN | _IFF_NO_PI))
    _run("ip", "addr", "add", f"{_TUNNEL}.{host}/24", "dev", "tunnel")
    _run("ip", "link", "set", "tunnel", "mtu", str(_MTU), "up")
    return device


def _connection(host: int) -> socket.socket:
    """To the other relay."""
    if host == 1:
        with socket.create_server((f"{_PAIR}.1", _PORT)) as server:
            connection, _ = server.accept()
    else:
        for _ in range(500):
            try:
                connection = socket.create_connection((f"{_PAIR}.1", _PORT))
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
        else:
            raise TimeoutError("the other relay is not there")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _relay(host: int, delay: float) -> None:
    device, connection = _tunnel(host), _connection(host)
    waiting: SimpleQueue[tuple[float, bytes]] = SimpleQueue()

    def take() -> None:
        while True:
            packet = os.read(device, 1 << 16)
            waiting.put((time.monotonic() + delay, packet))

    def pass_on() -> None:
        while True:
            due, packet = waiting.get()
            time.sleep(max(0.0, due - time.monotonic()))
            connection.sendall(struct.pack(">I", len(packet)) + packet)

    for work in (take, pass_on):
        threading.Thread(target=work, daemon=True).start()
    print("ready", flush=True)
    with suppress(ConnectionResetError), connection.makefile("rb") as received:
        while head := received.read(4):
            os.write(device, received.read(struct.unpack(">I", head)[0]))


def main(arguments: Sequence[str]) -> None:
    host, delay = arguments
    _relay(int(host), float(delay))


if __name__ == "__main__":
    main(sys.argv[1:])
