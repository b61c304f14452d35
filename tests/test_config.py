"""Settings: read once, refused where they cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from streams.config import VARIABLES, Config, ConfigError
from streams.failpoints import Failpoint


def test_nothing_set_gives_the_defaults_in_the_users_folder() -> None:
    config = Config.from_env({"XDG_DATA_HOME": "/data"})
    assert config == Config(home=Path("/data/tollway"))


def test_every_variable_is_read() -> None:
    env = {
        "TOLLWAY_HOME": "/h", "TOLLWAY_KAFKA": "k:1", "TOLLWAY_DATABASE_URL": "postgresql://d",
        "TOLLWAY_PARTITIONS": "3", "TOLLWAY_REPLICATION": "2", "TOLLWAY_APP_ID": "app",
        "TOLLWAY_SESSION_TIMEOUT_S": "4", "TOLLWAY_CHECKPOINT_MS": "50",
        "TOLLWAY_RESERVATION_TTL_S": "6", "TOLLWAY_DEFER_MS": "7", "TOLLWAY_METRICS_PORT": "8",
        "TOLLWAY_HEADS_KEY": "/k", "TOLLWAY_LOG_LEVEL": "DEBUG",
        "TOLLWAY_ENCODERS": "/e", "TOLLWAY_FAILPOINT": "sink.after_commit:kill:3",
    }  # fmt: skip
    assert set(env) == set(VARIABLES)
    assert Config.from_env({**env, "PATH": "/bin"}) == Config(
        home=Path("/h"), kafka="k:1", database_url="postgresql://d", partitions=3, replication=2,
        app_id="app", session_timeout_s=4, checkpoint_ms=50, reservation_ttl_ms=6_000,
        defer_ms=7, metrics_port=8, heads_key=Path("/k"), log_level="debug",
        encoders_folder=Path("/e"), failpoint=Failpoint("sink.after_commit", "kill", 3),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("TOLLWAY_PARTITION", "8", id="misspelt"),
        pytest.param("TOLLWAY_PARTITIONS", "0", id="too-small"),
        pytest.param("TOLLWAY_PARTITIONS", "1001", id="too-large"),
        pytest.param("TOLLWAY_PARTITIONS", "8.0", id="no-whole-number"),
        pytest.param("TOLLWAY_PARTITIONS", "many", id="no-number"),
        pytest.param("TOLLWAY_METRICS_PORT", "65536", id="no-port"),
        pytest.param("TOLLWAY_LOG_LEVEL", "loud", id="no-level"),
        pytest.param("TOLLWAY_FAILPOINT", "worker.nowhere:kill", id="no-failpoint"),
        pytest.param("TOLLWAY_FAILPOINT", "sink.after_commit:kill:0", id="no-count"),
    ],
)
def test_what_cannot_be_used_is_named(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Config.from_env({name: value})


def test_what_is_known_is_listed_as_the_readme_does() -> None:
    with pytest.raises(ConfigError) as unknown:
        Config.from_env({"TOLLWAY_KAFFKA": "k:1"})
    listed = str(unknown.value).split("known are ")[1].split(", ")
    rows = (Path(__file__).parents[1] / "README.md").read_text().splitlines()
    assert listed == [row.split("`")[1] for row in rows if row.startswith("| `TOLLWAY_")]
    with pytest.raises(ConfigError, match="one of debug, info, warning, error, got 'verbose'"):
        Config.from_env({"TOLLWAY_LOG_LEVEL": "verbose"})


def test_without_servers_it_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tollway up"):
        Config.from_env({"TOLLWAY_HOME": str(tmp_path)}).endpoints()
