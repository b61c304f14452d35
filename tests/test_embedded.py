"""The embedded stack: idempotent, durable, and whole again after any kill."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing, suppress
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from streams.embedded import (
    EmbeddedError,
    Endpoints,
    KafkaServer,
    PostgresServer,
    down,
    running_endpoints,
    status,
    up,
)
from streams.embedded.kafka import _new_cluster_id
from streams.embedded.processes import (
    Process,
    User,
    free_port,
    poll,
    port_is_free,
    spawn,
    write_atomically,
)


def produce(kafka: str, topic: str, value: bytes) -> None:
    errors = []
    producer = Producer({"bootstrap.servers": kafka, "acks": "all", "enable.idempotence": True})
    producer.produce(topic, value, on_delivery=lambda error, _: errors.append(error))
    assert producer.flush(20) == 0
    assert errors == [None]


def create_topic(kafka: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka})  # its request ends when it does
    admin.create_topics([NewTopic(topic, 1)])[topic].result(20)


def consume(kafka: str, topic: str, count: int) -> list[bytes]:
    consumer = Consumer(
        {"bootstrap.servers": kafka, "group.id": "none", "auto.offset.reset": "error"}
    )
    with closing(consumer):
        consumer.assign([TopicPartition(topic, 0, 0)])
        return [message.value() for message in consumer.consume(count, timeout=20)]


def connect(url: str) -> psycopg.Connection:
    return psycopg.connect(url.replace("+psycopg", "", 1), autocommit=True)


def write_both(endpoints: Endpoints, value: str) -> None:
    produce(endpoints.kafka, "kept", value.encode())
    with connect(endpoints.database_url) as connection:
        connection.execute("INSERT INTO kept VALUES (%s)", [value])


def read_both(endpoints: Endpoints, count: int) -> tuple[list[str], list[str]]:
    records = [value.decode() for value in consume(endpoints.kafka, "kept", count)]
    with connect(endpoints.database_url) as connection:
        rows = [row[0] for row in connection.execute("SELECT value FROM kept ORDER BY value")]
    return records, rows


@pytest.fixture
def stopped_process() -> Process:
    """Return a process that is over, known by the pid that this test itself has."""
    return Process(pid=os.getpid(), started_s=1.0)


@pytest.mark.kafka
@pytest.mark.postgres
def test_stack_keeps_data_and_ports_through_down_and_kills(servers_root):
    home = servers_root / "stack"
    kafka, postgres = KafkaServer(home / "kafka"), PostgresServer(home / "postgres")
    try:
        assert running_endpoints(home) is None
        first = up(home)
        pids = [server.pid for server in status(home)]
        assert up(home) == first == running_endpoints(home)
        assert [server.pid for server in status(home)] == pids

        create_topic(first.kafka, "kept")
        with connect(first.database_url) as connection:
            connection.execute("CREATE TABLE kept (value text)")
        write_both(first, "before down")
        down(home)
        down(home)
        assert [server.running for server in status(home)] == [False, False]
        assert running_endpoints(home) is None

        assert up(home) == first
        write_both(first, "before kill")
        for server in status(home):
            os.kill(server.pid, signal.SIGKILL)
        assert up(home) == first
        assert read_both(first, 2) == (["before down", "before kill"],) * 2

        # One of the two killed: down ends the other one.
        kafka.kill()
        down(home, wipe=True)
        assert (kafka.running, postgres.running) == (False, False)
        assert [path.name for path in home.iterdir()] == ["stack.lock"]
    finally:
        kafka.kill()
        postgres.stop("immediate")


@pytest.mark.postgres
def test_server_whose_endpoint_is_given_is_not_started(servers_root):
    home = servers_root / "bypass"
    try:
        endpoints = up(home, kafka="broker.example:9092")
        assert endpoints.kafka == "broker.example:9092"
        assert not (home / "kafka").exists()
        assert [server.running for server in status(home)] == [False, True]
        assert running_endpoints(home) is None
        assert running_endpoints(home, kafka="broker.example:9092") == endpoints
    finally:
        down(home)
    given = {"kafka": "broker.example:9092", "database_url": "postgresql://db.example/x"}
    assert up(home / "none", **given) == Endpoints(**given)
    assert running_endpoints(home / "none", **given) == Endpoints(**given)


@pytest.mark.kafka
def test_broker_whose_starter_died_before_noting_it_is_found(kafka_server):
    pid, bootstrap = kafka_server.pid, kafka_server.start()
    (kafka_server.folder / "server.json").unlink()
    other = KafkaServer(kafka_server.folder)
    assert other.pid == pid
    assert other.start() == bootstrap == other.known_bootstrap()
    assert other.pid == pid


@pytest.mark.postgres
def test_postgres_whose_starter_died_before_noting_it_is_found(postgres_server):
    pid, url = postgres_server.pid, postgres_server.start()
    state = postgres_server.folder / "server.json"
    ports = json.loads(state.read_text())["ports"]
    write_atomically(state, json.dumps({"ports": ports, "pid": None, "started_s": None}))
    other = PostgresServer(postgres_server.folder)
    assert other.pid == pid
    assert other.start() == url == other.known_url()
    # With the port unknown, too, it cannot be reached: it is ended and started anew.
    state.unlink()
    assert other.known_url() is None
    other.start()
    assert other.pid not in (None, pid)


@pytest.mark.kafka
def test_reused_pid_and_taken_port_are_not_mistaken_for_the_broker(kafka_server):
    old = kafka_server.start()
    pid = kafka_server.pid
    kafka_server.kill()
    state = json.loads((kafka_server.folder / "server.json").read_text())
    write_atomically(kafka_server.folder / "server.json", json.dumps({**state, "pid": os.getpid()}))
    assert not kafka_server.running
    with socket.create_server(("127.0.0.1", state["ports"][0])):
        new = kafka_server.start()
    assert new != old
    assert kafka_server.pid not in (None, pid, os.getpid())


@pytest.mark.kafka
def test_record_acknowledged_before_a_kill_is_there_after_it(kafka_server, topic_prefix):
    bootstrap = kafka_server.start()
    create_topic(bootstrap, topic_prefix)
    produce(bootstrap, topic_prefix, b"acknowledged")
    kafka_server.kill()
    assert not kafka_server.running
    assert kafka_server.start() == bootstrap
    assert consume(bootstrap, topic_prefix, 1) == [b"acknowledged"]


@pytest.mark.postgres
def test_postgres_starts_again_while_a_child_of_the_killed_one_is_busy(postgres_server):
    url = postgres_server.start()

    def keep_busy() -> None:
        with suppress(psycopg.OperationalError), connect(url) as connection:
            connection.execute("SELECT count(*) FROM generate_series(1, 10000000000)")

    busy = threading.Thread(target=keep_busy)
    with connect(url) as watcher:
        busy.start()
        active = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%generate_series(1, 1%'"
        assert poll(lambda: watcher.execute(active).fetchone()[0] == 2, timeout_s=20)
        postgres_server.kill()
    assert postgres_server.start() == url
    busy.join(timeout=20)
    assert not busy.is_alive()


@pytest.mark.postgres
def test_postgres_starts_although_its_old_pid_is_someone_elses(postgres_server, tmp_path):
    postgres_server.start()
    postgres_server.kill()
    note = postgres_server.folder / "data" / "postmaster.pid"
    owner = note.stat()
    user = User(owner.st_uid, owner.st_gid) if os.geteuid() == 0 else None
    stranger = spawn(["sleep", "60"], log=tmp_path / "log", env=os.environ, user=user)
    try:
        lines = note.read_text().splitlines()
        note.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        postgres_server.start()
        assert stranger.running
    finally:
        stranger.end()


@pytest.mark.postgres
def test_postgres_wants_its_password_and_is_durable(database_url):
    with connect(database_url) as connection:
        tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        assert connection.execute(tables).fetchone() == (0,)
        for setting in ("fsync", "synchronous_commit", "full_page_writes", "data_checksums"):
            assert connection.execute(f"SHOW {setting}").fetchone() == ("on",)
        assert connection.execute("SHOW server_version_num").fetchone()[0].startswith("18")
        info = connection.info
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(host=info.host, port=info.port, user=info.user, password="wrong")


@pytest.mark.postgres
def test_half_made_cluster_is_made_anew(servers_root):
    folder = servers_root / "postgres-half"
    (folder / "data.draft" / "base").mkdir(parents=True)
    (folder / "data.draft" / "PG_VERSION").write_text("18\n")
    (folder / "server.json").write_text('{"ports": [')
    server = PostgresServer(folder)
    server.start()
    with connect(server.create_database("a-b")) as connection:
        assert connection.execute("SELECT current_database()").fetchone() == ("a-b",)
    assert server.create_database("a-b") == server.url("a-b")
    server.drop_database("a-b")
    server.drop_database("a-b")
    server.stop()
    assert not server.running


@pytest.mark.kafka
def test_half_formatted_broker_is_formatted_anew_and_outlives_its_starter(servers_root):
    folder = servers_root / "kafka-half"
    (folder / "data" / "__cluster_metadata-0").mkdir(parents=True)
    (folder / "data" / "meta.properties").write_text("version=1\n")
    program = (
        "import sys; from pathlib import Path; from streams.embedded import KafkaServer;"
        "print(KafkaServer(Path(sys.argv[1]), heap_mb=256).start())"
    )
    command = [sys.executable, "-c", program, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    server = KafkaServer(folder)
    assert server.running
    assert os.getsid(server.pid) == server.pid
    assert server.start() == result.stdout.strip()
    server.stop()
    assert not server.running


def test_cluster_ids_are_never_taken_for_an_option():
    ids = {_new_cluster_id() for _ in range(2_000)}
    assert len(ids) == 2_000
    assert {len(cluster) for cluster in ids} == {22}
    assert not any(cluster.startswith("-") for cluster in ids)


def test_explicit_port_that_is_taken_is_an_error(tmp_path):
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert not port_is_free(port)
        with pytest.raises(EmbeddedError, match=f"port {port} is taken"):
            KafkaServer(tmp_path / "kafka", port=port).start()


def test_process_of_another_time_is_not_running(stopped_process):
    assert not stopped_process.running
    stopped_process.end()
    assert stopped_process.wait(0)


def test_process_that_ignores_the_signal_is_killed(tmp_path: Path):
    program = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('deaf', flush=True); time.sleep(60)"
    )
    log = tmp_path / "log"
    process = spawn([sys.executable, "-c", program], log=log, env=os.environ)
    assert poll(lambda: "deaf" in log.read_text(), timeout_s=20)
    assert process.running
    process.end(timeout_s=0.2)
    assert not process.running
