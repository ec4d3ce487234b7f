"""The image, the compose files and the broker's container, as far as no container engine is needed.

`docker-compose` reads the files; what a container would run is run here: the script that makes the
secrets, the broker's start script, the health checks.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.docs.pages import snippet
from tests.lab.bridge import PROJECT, Bridge
from tests.lab.certificates import Certificates
from tests.lab.commands import checked, run
from tests.lab.mosquitto import Mosquitto
from tests.lab.mqtt import RefusedError
from tests.lab.requester import Requester
from tests.lab.servers import LOOPBACK, accepts_connections, free_port, program

DEPLOY = PROJECT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
LOCK = (DEPLOY / "requirements.lock").read_text(encoding="utf-8")
COMPOSE_TEXT = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
SERVICES = yaml.safe_load(COMPOSE_TEXT)["services"]
CODEHUBOT = DEPLOY / "codehubot"
BLOCKS = {
    f"deploy/codehubot/{page}": {"override", "changed-lines"}
    for page in ("README.md", "README.zh-CN.md")
}
PLATFORM = PROJECT / "tests" / "deployment" / "platform-compose.yaml"


# The image


def test_dockerfile_satisfies_its_linter():
    linter = Path(sys.executable).with_name("hadolint")
    assert checked(linter, DEPLOY / "Dockerfile") == ""


def test_image_gets_all_that_the_dockerfile_copies_and_no_env_file():
    ignored = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = {name.removeprefix("./") for line in copied for name in line.split()}
    assert "*" in ignored
    assert sources == let_in
    assert all((PROJECT / name).exists() for name in sources)


def test_container_is_not_root_and_its_health_check_asks_livez(bridge):
    assert re.search(r"^USER (?!0)\d+", DOCKERFILE, re.MULTILINE)
    (check,) = re.findall(r"CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert "/livez" in check
    _, *arguments = json.loads(check)
    assert health(arguments, SERVICE_PORT=str(bridge.port)) == 0
    assert health(arguments, SERVICE_PORT="9") == 1


def health(arguments: list[str], **environment: str) -> int:
    """The exit status of a health check that is a Python program."""
    direct = {"NO_PROXY": "*", **environment}
    return run(sys.executable, *arguments, environment=direct).returncode


def test_every_image_is_pinned_to_a_release():
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    images = {*bases, *(service["image"] for service in SERVICES.values() if "image" in service)}
    assert len(set(bases)) == 1
    assert not [name for name in images if not re.fullmatch(r"[\w-]+:\d+\.\d+\.\d+[\w-]*", name)]


def test_platform_s_build_arguments_reach_pip():
    build = DOCKERFILE.split("FROM ")[1]
    assert {"USE_CHINA_MIRROR", "PIP_INDEX_URL", "PIP_TRUSTED_HOST"} == set(
        re.findall(r"^ARG (\w+)$", build, re.MULTILINE)
    )
    assert build.index("ARG PIP_INDEX_URL") < build.index("pip install")


# The locked requirements


def locked() -> dict[str, str]:
    """The version of each locked package."""
    pins = re.findall(r"^([\w.-]+)==(\S+) \\$", LOCK, re.MULTILINE)
    return {canonicalize_name(name): version for name, version in pins}


def in_the_image(requirement: Requirement) -> bool:
    """Whether a requirement without extras holds where the image runs."""
    (version,) = set(re.findall(r"^FROM python:(\d+\.\d+)", DOCKERFILE, re.MULTILINE))
    environment = {
        **default_environment(),
        "python_version": version,
        "python_full_version": f"{version}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "extra": "",
    }
    return requirement.marker is None or requirement.marker.evaluate(environment)


def satisfied(requirement: Requirement) -> bool:
    version = locked().get(canonicalize_name(requirement.name))
    return version is not None and requirement.specifier.contains(version)


def test_lock_satisfies_the_requirements():
    """If it does not: run the command in the lock's head."""
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert wanted
    needed = [requirement for requirement in wanted if in_the_image(requirement)]
    assert [str(requirement) for requirement in needed if not satisfied(requirement)] == []


def test_lock_holds_what_the_locked_packages_need_themselves():
    for name in locked():
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if in_the_image(requirement):
                assert canonicalize_name(requirement.name) in locked(), (name, text)


def test_lock_holds_nothing_that_is_no_longer_needed():
    lines = (PROJECT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    needed = {Requirement(line).name for line in lines if line and not line.startswith("#")}
    for name in locked():
        needed |= {Requirement(text).name for text in importlib.metadata.requires(name) or ()}
    assert locked().keys() - {canonicalize_name(name) for name in needed} == set()


def test_every_locked_package_has_hashes_and_pip_demands_them():
    packages = re.split(r"^(?=[\w.-]+==)", LOCK, flags=re.MULTILINE)[1:]
    assert len(packages) == len(locked())
    assert not [package for package in packages if "--hash=sha256:" not in package]
    assert "--require-hashes --only-binary :all: -r requirements.lock" in DOCKERFILE


def test_lock_tells_how_it_is_renewed_and_names_no_package_index():
    head = LOCK[: LOCK.index("==")]
    assert re.search(r"^# +uv pip compile --generate-hashes .* requirements\.txt$", head, re.M)
    assert "://" not in LOCK
    assert set(re.findall(r"^ *(--[\w-]+)", LOCK, re.MULTILINE)) == {"--hash"}


# The compose files


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    """The folder as a user has it after make-secrets.sh."""
    folder = tmp_path / "deploy"
    shutil.copytree(DEPLOY, folder)
    checked(folder / "make-secrets.sh", folder=tmp_path)
    return folder


def composed(*files: Path, **environment: str) -> dict[str, Any]:
    """What docker-compose makes of these files, seen from the first one's folder."""
    done = checked(
        *(program("docker-compose"), *(part for file in files for part in ("-f", file)), "config"),
        folder=files[0].parent,
        environment={"PATH": os.environ["PATH"], **environment},
    )
    # With several files, what is empty is written as {}; with one, as null.
    configuration: dict[str, Any] = yaml.safe_load(done.replace(": {}\n", ": null\n"))
    return configuration


def published(service: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Each published port with its address; how it is written depends on what was merged."""
    found = []
    for port in service.get("ports", ()):
        if isinstance(port, str):
            address, _, number = port.removesuffix("/tcp").rpartition(":")[0].rpartition(":")
            found.append((address, number))
        else:
            found.append((port.get("host_ip", ""), str(port["published"])))
    return found


def test_compose_file_is_taken_once_the_secrets_are_made_and_not_before(deploy):
    bridge = composed(deploy / "compose.yaml")["services"]["bridge"]
    assert bridge["environment"]["MQTT_BROKER"] == "broker"
    (deploy / ".env").unlink()
    refused = run(program("docker-compose"), "config", folder=deploy)
    assert refused.returncode != 0
    assert "run ./make-secrets.sh first" in refused.stderr


def test_names_that_a_login_could_abuse_are_random_and_stay_as_they_are(deploy):
    made = secrets_of(deploy)
    checked(deploy / "make-secrets.sh", folder=deploy)
    assert secrets_of(deploy) == made
    environment = composed(deploy / "compose.yaml")["services"]["bridge"]["environment"]
    names = {environment["MQTT_INSTANCE"], environment["MQTT_SHARE"]}
    assert len(names) == 2
    assert all(re.fullmatch(r"bridge-[0-9a-f]{48}", name) for name in names)
    assert (deploy / "secrets").stat().st_mode & 0o777 == 0o700


def secrets_of(folder: Path) -> dict[str, str]:
    files = [folder / ".env", *(folder / "secrets").iterdir()]
    return {file.name: file.read_text() for file in files}


def test_containers_can_read_what_a_strict_umask_closed(deploy):
    (deploy / "mosquitto").chmod(0o700)
    (deploy / "mosquitto" / "start.sh").chmod(0o600)
    checked(deploy / "make-secrets.sh", folder=deploy)
    assert (deploy / "mosquitto").stat().st_mode & 0o005 == 0o005
    assert (deploy / "mosquitto" / "start.sh").stat().st_mode & 0o004


def test_what_an_older_version_left_is_kept_and_the_missing_names_are_added(deploy):
    (deploy / "secrets" / "db_password").write_text("from before\n")
    (deploy / ".env").write_text("MQTT_INSTANCE=\nCOMPOSE_PROJECT_NAME=mine")
    checked(deploy / "make-secrets.sh", folder=deploy)
    assert (deploy / "secrets" / "db_password").read_text() == "from before\n"
    environment = (deploy / ".env").read_text()
    assert "COMPOSE_PROJECT_NAME=mine\n" in environment
    assert len(re.findall(r"^MQTT_(?:INSTANCE|SHARE)=bridge-\w+$", environment, re.M)) == 2


def test_every_service_is_confined_and_its_log_bounded(deploy):
    services = composed(deploy / "compose.yaml")["services"]
    assert set(services) == {"database", "broker", "bridge"}
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "cap_add" not in service
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["logging"]["options"].keys() >= {"max-size", "max-file"}
    # The bridge's user is in its image.
    assert {name for name in services if "user" not in services[name]} == {"bridge"}


def test_every_service_has_a_health_check_and_no_secret_is_in_the_file():
    # That of the bridge is in its image.
    assert [name for name in SERVICES if "healthcheck" not in SERVICES[name]] == ["bridge"]
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if "PASSWORD" in name:
                assert name.endswith("_FILE")
                assert Path(value).name in service["secrets"]


def test_http_is_published_to_this_machine_alone_where_no_keys_guard_it():
    bridge = SERVICES["bridge"]
    assert "API_KEYS_FILE" not in bridge["environment"]
    assert [port.rsplit(":", 2)[0] for port in bridge["ports"]] == [LOOPBACK]


def test_compose_file_with_its_keys_taken_in_is_what_compose_takes(deploy):
    """As its head says: the lines with api_keys, which are commented out."""
    opened = re.sub(r"^( +)# (.*api_keys.*)$", r"\1\2", COMPOSE_TEXT, flags=re.MULTILINE)
    (deploy / "compose.yaml").write_text(opened, encoding="utf-8")
    bridge = composed(deploy / "compose.yaml")["services"]["bridge"]
    taken = {secret["source"] for secret in bridge["secrets"]}
    assert Path(bridge["environment"]["API_KEYS_FILE"]).name in taken


def test_mqtt_is_published_only_when_asked_for_and_by_tls(deploy):
    base = deploy / "compose.yaml"
    assert published(composed(base)["services"]["broker"]) == []
    for name in ("mqtt_tls_certificate", "mqtt_tls_key"):
        (deploy / "secrets" / name).touch()
    broker = composed(base, deploy / "compose.mqtt-tls.yaml")["services"]["broker"]
    assert published(broker) == [("", "8883")]
    taken = {secret["source"] for secret in broker["secrets"]}
    assert taken >= {"mqtt_users", "mqtt_tls_certificate", "mqtt_tls_key"}


def test_mqtt_without_tls_is_published_on_a_named_address_alone(deploy):
    files = (deploy / "compose.yaml", deploy / "compose.mqtt-plain.yaml")
    refused = run(
        program("docker-compose"), "-f", files[0], "-f", files[1], "config", folder=deploy
    )
    assert "set MQTT_ADDRESS" in refused.stderr
    broker = composed(*files, MQTT_ADDRESS="192.168.50.1")["services"]["broker"]
    assert published(broker) == [("192.168.50.1", "1883")]


def test_bind_mounts_of_the_compose_file_are_there():
    mounts = [mount for service in SERVICES.values() for mount in service.get("volumes", ())]
    sources = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert sources
    assert not [source for source in sources if not (DEPLOY / source).exists()]


# The broker's container


class StartedBySecrets(Mosquitto):
    """The broker as its container starts it, with the folders elsewhere."""

    def __init__(self, certificates: Certificates | None = None) -> None:
        super().__init__()
        self.tls_port = free_port()
        for name in ("config", "secrets", "data"):
            (self.folder / name).mkdir()
        shutil.copytree(DEPLOY / "mosquitto", self.folder / "deploy")
        written = self.folder / "deploy" / "mosquitto.conf"
        text = written.read_text(encoding="utf-8")
        text = text.replace("listener 1883", f"listener {self.port} {LOOPBACK}")
        text = text.replace("/etc/mosquitto/", f"{self.folder}/config/")
        if os.geteuid() == 0:
            # It would become a user who may not read this folder.
            text += "user root\n"
        written.write_text(text, encoding="utf-8")
        self.give("mqtt_password", "of the bridge\n")
        self.give("mqtt_users", "plugin-a:its own\n\n")
        if certificates is not None:
            self.give("mqtt_tls_certificate", certificates.server.certificate.read_text())
            self.give("mqtt_tls_key", certificates.server.key.read_text())

    def give(self, secret: str, text: str) -> None:
        (self.folder / "secrets" / secret).write_text(text, encoding="utf-8")

    def command(self) -> list[str]:
        return [program("sh"), str(self.folder / "deploy" / "start.sh")]

    def environment(self) -> Mapping[str, str]:
        return {
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
            "MOSQUITTO_CONFIG": str(self.folder / "config"),
            "MOSQUITTO_SECRETS": str(self.folder / "secrets"),
            "MOSQUITTO_DATA": str(self.folder / "data"),
            "MOSQUITTO_TLS_PORT": str(self.tls_port),
        }


async def test_broker_of_the_compose_file_lets_in_those_of_its_secrets_and_no_other(
    private_bridge,
):
    broker = StartedBySecrets()
    try:
        await asyncio.to_thread(broker.start)
        await asyncio.to_thread(
            private_bridge, broker=broker, MQTT_USERNAME="bridge", MQTT_PASSWORD="of the bridge"
        )
        async with Requester(broker, username="plugin-a", password="its own") as plugin:
            reply = await plugin.ask("health", client_level="plugin-a")
            assert reply.code == 200
        with pytest.raises(RefusedError):
            await Requester(broker, username="plugin-a", password="wrong").connect()
        assert "its own" not in (broker.folder / "config" / "passwd").read_text(encoding="utf-8")
        assert not accepts_connections(LOOPBACK, broker.tls_port)
        # What it keeps across a restart is in the volume.
        await asyncio.to_thread(broker.stop)
        assert (broker.folder / "data" / "mosquitto.db").exists()
    finally:
        await asyncio.to_thread(broker.close)


def test_broker_with_a_certificate_takes_the_same_logins_by_tls(certificates, tmp_path):
    with StartedBySecrets(certificates) as broker:
        asked = [program("mosquitto_pub"), "-h", LOOPBACK, "-p", str(broker.tls_port), "-q", "1"]
        asked += ["--cafile", str(certificates.ca), "-t", "plugin/request/health/plugin-a"]
        asked += ["-m", "{}", "-u", "plugin-a", "-P"]
        assert subprocess.run([*asked, "its own"], check=False, timeout=20).returncode == 0
        refused = subprocess.run(
            [*asked, "wrong"], check=False, timeout=20, capture_output=True, text=True
        )
        assert "not authorised" in refused.stderr.lower()


# In the platform's own compose file


@pytest.fixture
def platform_folder(tmp_path: Path) -> Path:
    """The platform's `docker` folder."""
    folder = tmp_path / "platform" / "docker"
    folder.mkdir(parents=True)
    for built in ("plugin-service", "plugin-backend-service"):
        (folder.parent / built).mkdir()
    shutil.copy(PLATFORM, folder / "docker-compose.prod.yml")
    return folder


def overridden(folder: Path, **environment: str) -> dict[str, Any]:
    """The platform's configuration with the override."""
    files = (folder / "docker-compose.prod.yml", CODEHUBOT / "compose.override.yaml")
    return composed(*files, BRIDGE_DIR=str(PROJECT), **environment)


CHANGED_LINES = {"context", "dockerfile", "MQTT_INSTANCE", "MQTT_SHARE"} | {
    "cap_drop",
    "security_opt",
    "stop_grace_period",
}


def flat(service: Mapping[str, Any]) -> dict[str, Any]:
    """A service with what is in its build and environment on the same level."""
    rest = {name: value for name, value in service.items() if name not in {"build", "environment"}}
    return rest | service["build"] | service["environment"]


def test_override_changes_a_few_lines_of_one_service_and_nothing_else(platform_folder):
    before = composed(platform_folder / "docker-compose.prod.yml")
    after = overridden(platform_folder)
    old, new = (whole["services"].pop("plugin-backend-service") for whole in (before, after))
    assert before == after
    old, new = flat(old), flat(new)
    assert {name for name in old | new if old.get(name) != new.get(name)} == CHANGED_LINES
    assert (new["context"], new["dockerfile"]) == (str(PROJECT), "deploy/Dockerfile")
    assert (new["container_name"], str(new["SERVICE_PORT"])) == ("plugin-backend-service", "9002")
    assert [*new["networks"]] == ["aiot-network"]
    assert new["args"]["USE_CHINA_MIRROR"] == "true"


def test_mirror_and_names_of_the_platform_s_env_file_are_taken(platform_folder):
    (platform_folder / ".env").write_text(
        "PIP_INDEX_URL=https://mirror.test/simple\nPIP_TRUSTED_HOST=mirror.test\n"
        "MQTT_INSTANCE=bridge-5f\nMQTT_SHARE=share-5f\n"
    )
    service = flat(overridden(platform_folder)["services"]["plugin-backend-service"])
    assert service["args"]["PIP_INDEX_URL"] == "https://mirror.test/simple"
    assert service["args"]["PIP_TRUSTED_HOST"] == "mirror.test"
    assert (service["MQTT_INSTANCE"], service["MQTT_SHARE"]) == ("bridge-5f", "share-5f")


@pytest.mark.parametrize("page", BLOCKS)
def test_commands_of_the_page_give_the_platform_the_override(page, platform_folder):
    """`config` shows what `up` would start; an engine would be needed to start it."""
    commands = snippet(page, "override").replace("/opt/bridge", str(PROJECT))
    commands = commands.replace("docker compose", program("docker-compose"))
    shown, count = re.subn(r"up -d --build plugin-backend-service$", "config", commands, flags=re.M)
    assert count == 1
    done = checked(program("bash"), "-eu", "-c", shown, folder=platform_folder)
    assert yaml.safe_load(done.replace(": {}\n", ": null\n")) == overridden(platform_folder)


@pytest.mark.parametrize("page", BLOCKS)
def test_changed_lines_of_the_page_are_those_of_the_override(page, platform_folder):
    lines = snippet(page, "changed-lines")
    changes = yaml.safe_load(lines.replace("/opt/bridge", str(PROJECT)))
    assert flat(changes).keys() == CHANGED_LINES
    platform = yaml.safe_load(PLATFORM.read_text(encoding="utf-8"))
    service = platform["services"]["plugin-backend-service"]
    for section in ("build", "environment"):
        service[section].update(changes.pop(section))
    service.update(changes)
    edited = platform_folder / "edited.yml"
    edited.write_text(yaml.safe_dump(platform), encoding="utf-8")
    assert composed(edited) == overridden(platform_folder)


def test_bridge_serves_on_the_platform_s_settings_and_passes_its_health_check(
    platform_folder, mosquitto, mariadb, private_bridge
):
    service = overridden(platform_folder)["services"]["plugin-backend-service"]
    # Host names and ports of its network are replaced by the lab's.
    settings = {name: str(value) for name, value in service["environment"].items()}
    replaced = {"DB_HOST", "DB_PORT", "DB_USER", "DB_PASSWORD", "DB_NAME"}
    replaced |= {"MQTT_BROKER", "MQTT_PORT", "SERVICE_PORT"}
    kept = {name: value for name, value in settings.items() if name not in replaced}
    bridge: Bridge = private_bridge(**kept)
    assert bridge.instance == "plugin-backend-service"
    _, command, *arguments = service["healthcheck"]["test"]
    assert command == "python"
    here = [argument.replace(":9002", f":{bridge.port}") for argument in arguments]
    assert here != arguments
    assert health(here) == 0
    bridge.stop()
    assert health(here) == 1
