"""The deployment file says only what the program reads, runs and has."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from streams.__main__ import build_cli
from streams.config import VARIABLES, Config
from streams.embedded.jars import KAFKA_VERSION

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}


def test_there_are_two_workers_a_sink_and_what_prepares_them():
    commands = sorted(service["command"][1] for service in OURS.values())
    assert commands == ["migrate", "sink", "topics", "worker", "worker"]


@pytest.mark.parametrize("name", OURS)
def test_the_configuration_reads_every_variable(name):
    environment = OURS[name]["environment"]
    assert set(environment) <= set(VARIABLES)
    config = Config.from_env(environment)
    # Nothing is left to the embedded stack, which the image does not have.
    assert config.kafka == "kafka:9092"
    assert config.database_url.endswith("@postgres:5432/tollway")


@pytest.mark.parametrize("name", OURS)
def test_every_command_is_registered(name):
    program, command = OURS[name]["command"]
    assert program == "tollway"
    assert command in typer.main.get_command(build_cli()).commands


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_can_come_true(name):
    for target, wanted in SERVICES[name].get("depends_on", {}).items():
        if wanted["condition"] == "service_healthy":
            assert "healthcheck" in SERVICES[target]
        else:
            # A service that is started again whenever it ends never completes.
            assert wanted["condition"] == "service_completed_successfully"
            assert SERVICES[target]["restart"] == "on-failure"


@pytest.mark.parametrize("name", SERVICES)
def test_named_volumes_exist_and_ports_are_on_loopback_only(name):
    for volume in SERVICES[name].get("volumes", []):
        assert volume.split(":")[0] in COMPOSE["volumes"]
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:")


def test_workers_are_asked_for_their_health_where_they_serve_it():
    for service in (s for s in OURS.values() if s["command"][1] == "worker"):
        port = service["environment"]["TOLLWAY_METRICS_PORT"]
        assert f"http://127.0.0.1:{port}/" in service["healthcheck"]["test"][-1]


def test_kafka_is_the_version_that_the_embedded_stack_runs():
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}"


def test_the_image_has_what_the_build_needs():
    kept = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ")
        for source in line.split()[1:-1]
    }
    assert copied == kept
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.skipif(
    shutil.which("docker-compose") is None, reason="docker-compose is not installed"
)
def test_docker_compose_accepts_the_file():
    command = ["docker-compose", "--file", str(ROOT / "docker-compose.yml"), "config", "--quiet"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
