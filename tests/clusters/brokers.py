"""Brokers other than Mosquitto, each a process (or several of one cluster) of 127.0.0.1.

All that they write lies in their temporary folder, and nothing of them outlives the tests.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.lab.bridge import PROJECT
from tests.lab.servers import LOOPBACK, Server, free_port, program

FOLDER = PROJECT / "tests" / "clusters"
COOKIE = "clusters"
# Where Debian puts them.
RABBITMQ = Path("/usr/lib/rabbitmq/bin")
ERLANG_LIBRARIES = next(Path("/usr/lib").glob("*/ejabberd-*"), Path("/usr/lib/ejabberd")).parent
ACTIVEMQ = Path("/usr/share/activemq")
ACTIVEMQ_NEEDS = [
    Path("/usr/share/java") / name
    for name in ("mqtt-client.jar", "hawtdispatch.jar", "hawtdispatch-transport.jar")
]


class Node(Server):
    """A broker, or one of its cluster; `port` is that of MQTT."""

    start_timeout = 200.0
    # What the bridge has to set for it.
    settings: Mapping[str, str] = {}
    username: str | None = None
    password: str | None = None

    def _environment(self, **more: str) -> Mapping[str, str]:
        return {"PATH": f"{os.environ['PATH']}:/usr/sbin", "HOME": str(self.folder), **more}

    def environment(self) -> Mapping[str, str]:
        return self._environment()

    def answers(self) -> bool:
        """Whether it answers a CONNECT; some listen long before."""
        try:
            with socket.create_connection((self.host, self.port), timeout=1) as probe:
                probe.settimeout(2)
                probe.sendall(_connect(self.username, self.password))
                return probe.recv(1) == b"\x20"
        except OSError:
            return False


def _connect(username: str | None, password: str | None) -> bytes:
    """A CONNECT of 3.1.1 with a clean session."""

    def text(value: str) -> bytes:
        return len(value.encode()).to_bytes(2, "big") + value.encode()

    flags = 0x02 | (0x80 if username else 0) | (0x40 if password else 0)
    login = b"".join(text(part) for part in (username, password) if part)
    body = text("MQTT") + bytes([4, flags, 0, 30]) + text("probe") + login
    return bytes([0x10, len(body)]) + body


class Nats(Node):
    """NATS with JetStream, which its MQTT needs."""

    def __init__(
        self,
        name: str = "n1",
        routes: Sequence[int] = (),
        own_route: int = 0,
        ack_wait: str = "30s",
    ) -> None:
        """`ack_wait` (NATS's default) is when it sends again what was not acknowledged."""
        super().__init__()
        lines = [
            f"server_name: {name}",
            f"listen: {LOOPBACK}:{free_port()}",
            f'jetstream {{ store_dir: "{self.folder}" }}',
            f'mqtt {{ listen: {LOOPBACK}:{self.port}, ack_wait: "{ack_wait}" }}',
        ]
        if routes:
            peers = ", ".join(f"nats://{LOOPBACK}:{port}" for port in routes)
            lines.append(
                f"cluster {{ name: lab, listen: {LOOPBACK}:{own_route}, routes: [{peers}] }}"
            )
        self._config = self.folder / "nats.conf"
        self._config.write_text("\n".join(lines) + "\n")

    def command(self) -> list[str]:
        return [program("nats-server"), "-c", str(self._config)]


class Aedes(Node):
    def __init__(self, modules: Path = FOLDER / "node_modules") -> None:
        super().__init__()
        self._modules = modules

    def command(self) -> list[str]:
        return [
            program("node"),
            str(FOLDER / "aedes.mjs"),
            str(self.port),
            str(self._modules),
        ]


class Amqtt(Node):
    """Installed by `tests/clusters/run` in an environment of its own."""

    python = PROJECT / ".venv-amqtt" / "bin" / "python"

    def __init__(self) -> None:
        super().__init__()
        (self.folder / "config.yaml").write_text(
            f"listeners:\n  default:\n    type: tcp\n    bind: {LOOPBACK}:{self.port}\n"
            "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n"
            "    allow_anonymous: true\n"
        )

    def command(self) -> list[str]:
        return [str(self.python.with_name("amqtt")), "-c", str(self.folder / "config.yaml")]


class ActiveMq(Node):
    def __init__(self) -> None:
        super().__init__()
        # Debian's package does not name these among what it needs.
        (self.folder / "lib").mkdir()
        for library in ACTIVEMQ_NEEDS:
            (self.folder / "lib" / library.name).symlink_to(library)
        (self.folder / "broker.xml").write_text(
            '<beans xmlns="http://www.springframework.org/schema/beans" '
            'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" '
            'xsi:schemaLocation="http://www.springframework.org/schema/beans '
            "http://www.springframework.org/schema/beans/spring-beans.xsd "
            "http://activemq.apache.org/schema/core "
            'http://activemq.apache.org/schema/core/activemq-core.xsd">'
            '<broker xmlns="http://activemq.apache.org/schema/core" useJmx="false" '
            f'persistent="false" dataDirectory="{self.folder}"><transportConnectors>'
            f'<transportConnector name="mqtt" uri="mqtt://{LOOPBACK}:{self.port}"/>'
            "</transportConnectors></broker></beans>\n"
        )

    def command(self) -> list[str]:
        return [
            program("java"),
            f"-Dactivemq.home={ACTIVEMQ}",
            f"-Dactivemq.base={self.folder}",
            f"-Dactivemq.conf={self.folder}",
            f"-Dactivemq.data={self.folder}",
            "-jar",
            str(ACTIVEMQ / "bin" / "activemq.jar"),
            "start",
            f"xbean:file:{self.folder}/broker.xml",
        ]


class PortMapper(Server):
    """epmd, by which the Erlang nodes of one cluster find each other."""

    def __init__(self) -> None:
        super().__init__()

    def command(self) -> list[str]:
        return [program("epmd"), "-port", str(self.port), "-address", self.host]


class ErlangNode(Node):
    """A node of RabbitMQ or ejabberd: `<name>@localhost`."""

    def __init__(self, name: str, mapper: PortMapper) -> None:
        super().__init__()
        self.node = f"{name}@localhost"
        self._mapper = mapper
        cookie = self.folder / ".erlang.cookie"
        cookie.write_text(COOKIE)
        cookie.chmod(0o400)

    def _erlang(self, **more: str) -> Mapping[str, str]:
        return self._environment(
            ERL_EPMD_PORT=str(self._mapper.port), ERL_EPMD_ADDRESS=LOOPBACK, **more
        )


class RabbitMq(ErlangNode):
    settings: Mapping[str, str] = {"MQTT_USERNAME": "guest", "MQTT_PASSWORD": "guest"}
    username, password = "guest", "guest"

    def __init__(self, name: str, mapper: PortMapper, members: Sequence[str] = ()) -> None:
        super().__init__(name, mapper)
        lines = [
            f"mqtt.listeners.tcp.1 = {LOOPBACK}:{self.port}",
            "mqtt.allow_anonymous = false",
            "log.console.level = warning",
            "cluster_formation.peer_discovery_backend = classic_config",
        ]
        lines += [
            f"cluster_formation.classic_config.nodes.{number} = {member}@localhost"
            for number, member in enumerate(members, 1)
        ]
        (self.folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")
        (self.folder / "plugins").write_text("[rabbitmq_mqtt].\n")
        self._ports = free_port(), free_port()

    def command(self) -> list[str]:
        # Debian's wrapper changes to a user who may not read this folder.
        return [str((RABBITMQ / "rabbitmq-server").resolve())]

    def environment(self) -> Mapping[str, str]:
        amqp, distribution = self._ports
        return self._erlang(
            RABBITMQ_NODENAME=self.node,
            RABBITMQ_NODE_IP_ADDRESS=LOOPBACK,
            RABBITMQ_NODE_PORT=str(amqp),
            RABBITMQ_DIST_PORT=str(distribution),
            RABBITMQ_MNESIA_BASE=str(self.folder / "data"),
            RABBITMQ_LOG_BASE=str(self.folder),
            RABBITMQ_LOGS="-",
            RABBITMQ_CONFIG_FILE=str(self.folder / "rabbitmq.conf"),
            RABBITMQ_ENABLED_PLUGINS_FILE=str(self.folder / "plugins"),
            RABBITMQ_PID_FILE=str(self.folder / "pid"),
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+S 1:1 +sbwt none +sbwtdcpu none +sbwtdio none",
        )


class Ejabberd(ErlangNode):
    """Lets in whoever shows a login."""

    settings: Mapping[str, str] = {
        "MQTT_USERNAME": "bridge@localhost",
        "MQTT_PASSWORD": "secret",
        "MQTT_SHARE": "",
    }
    username, password = "probe@localhost", "secret"

    def __init__(self, name: str, mapper: PortMapper, leader: str | None = None) -> None:
        super().__init__(name, mapper)
        self._leader = leader
        (self.folder / "ejabberd.yml").write_text(
            "hosts: [localhost]\nloglevel: warning\ncertfiles: []\n"
            "auth_method: [anonymous]\nanonymous_protocol: login_anon\n"
            "allow_multiple_connections: true\n"
            f'listen:\n  - port: {self.port}\n    ip: "{LOOPBACK}"\n    module: mod_mqtt\n'
            "modules:\n  mod_mqtt:\n    access_publish: {}\n    access_subscribe: {}\n"
        )

    def command(self) -> list[str]:
        join = []
        if self._leader:
            call = f"ejabberd_cluster:join('{self._leader}@localhost')"
            join = ["-eval", f'{call}, io:format("joined~n").']
        folder = self.folder
        options = ["-sname", self.node, "-setcookie", COOKIE, "+sbwt", "none", "+S", "1:1"]
        return [
            program("erl"),
            *options,
            *("-mnesia", "dir", f'"{folder}/data"'),
            *("-s", "ejabberd"),
            *join,
            "-noinput",
        ]

    def environment(self) -> Mapping[str, str]:
        return self._erlang(
            ERL_LIBS=str(ERLANG_LIBRARIES),
            EJABBERD_CONFIG_PATH=str(self.folder / "ejabberd.yml"),
            EJABBERD_LOG_PATH=str(self.folder / "ejabberd.log"),
        )


class Cluster:
    """Nodes of one kind, started together."""

    def __init__(self, *nodes: Node, mapper: PortMapper | None = None) -> None:
        self.nodes = nodes
        self._mapper = mapper
        self._servers = ExitStack()

    def __enter__(self) -> Self:
        try:
            if self._mapper is not None:
                self._servers.enter_context(self._mapper)
            for node in self.nodes:
                self._servers.callback(node.close)
                node.spawn()
                if isinstance(node, ErlangNode):
                    # Those that start together wait for each other's locks, for minutes.
                    node.wait_for(node.answers, "serving")
            for node in self.nodes:
                node.wait_for(node.answers, "serving")
        except BaseException:
            self._servers.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._servers.close()


def nats(size: int) -> Cluster:
    routes = [free_port() for _ in range(size)]
    if size == 1:
        return Cluster(Nats())
    return Cluster(*(Nats(f"n{number}", routes, own) for number, own in enumerate(routes, 1)))


def rabbitmq(size: int) -> Cluster:
    mapper = PortMapper()
    members = [f"r{number}" for number in range(1, size + 1)]
    return Cluster(*(RabbitMq(name, mapper, members) for name in members), mapper=mapper)


def ejabberd(size: int) -> Cluster:
    mapper = PortMapper()
    nodes = [
        Ejabberd(f"e{number}", mapper, "e1" if number > 1 else None)
        for number in range(1, size + 1)
    ]
    return Cluster(*nodes, mapper=mapper)


SINGLE: dict[str, Callable[[], Cluster]] = {
    "Aedes": lambda: Cluster(Aedes()),
    "amqtt": lambda: Cluster(Amqtt()),
    "NATS": lambda: nats(1),
    "RabbitMQ": lambda: rabbitmq(1),
    "ejabberd": lambda: ejabberd(1),
    "ActiveMQ": lambda: Cluster(ActiveMq()),
}
