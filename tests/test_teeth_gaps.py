"""What no other test without servers would catch of the bugs that ``tests/teeth.py`` plants."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from policy.money import Price, call_cost_nanousd
from policy.pages import Gate
from policy.settle import pass_over
from policy.state import Limits
from policy.windows import RewardWindows
from streams.checkpoints import POSITION_KEY, Kept, whole_pages
from streams.ledger.chain import NOTHING, ORIGIN, Link, seal
from streams.ledger.heads import is_genuine, sign
from streams.metrics import Metrics
from streams.partition import Partition
from streams.publisher import Outbox, OverlapError
from streams.topics import TABLES
from tests.core_machine import Machine, catalog, digest, incoming
from tests.simulation.run import run_seed

NOW_MS = 1_000_000
LINK = Link(
    0, 1, 1, 2, 3, 4, datetime(2026, 1, 1, tzinfo=UTC), NOTHING, NOTHING, NOTHING, b""
)  # fmt: skip


@pytest.mark.parametrize(("tokens", "billed"), [(1, 1), (2_001, 3)])
def test_money_is_rounded_up_wherever_a_call_is_settled(tokens: int, billed: int) -> None:
    """Prices of whole nano-dollars a token, as most tests have them, would hide the rounding."""
    price = Price(version=2, input=1, output=1)
    machine = Machine(catalog().with_price("small", price))
    small = frozenset({"small"})
    machine.decide(
        [incoming(0, at_ms=NOW_MS, offset=0, arms=small, max_output_tokens=4_000)], now_ms=NOW_MS
    )
    machine.settle(id=digest(0), at_ms=NOW_MS, input_tokens=0, output_tokens=tokens, usage_print=1)
    assert machine.state.budgets.settled.tolist() == [billed] * len(machine.state.budgets)
    assert call_cost_nanousd(price, input_tokens=0, output_tokens=tokens) == billed


def test_the_clock_never_goes_back() -> None:
    """A record that cannot be read lets time pass as well; its broker's clock may be behind."""
    machine = Machine(catalog(), limits=Limits(reservation_ttl_ms=500))
    machine.decide([incoming(0, at_ms=NOW_MS, offset=0)], now_ms=NOW_MS)
    pass_over(machine.state, 0, NOW_MS - 10_000)
    assert machine.state.clock_ms == NOW_MS
    pass_over(machine.state, 1, NOW_MS + 10_000)
    assert machine.state.clock_ms == NOW_MS + 10_000
    assert machine.state.budgets.reserved.tolist() == [0] * len(machine.state.budgets)


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_how_outcomes_are_divided_changes_no_window(cut: int) -> None:
    """Rewards that are sums of powers of two, as most tests have them, would hide the order."""
    rewards = np.array([0.7, 0.1, 0.2, 0.3])
    unknown, errors = np.full(4, -1), np.zeros(4, np.bool_)
    pages = []
    for parts in ([slice(0, 4)], [slice(0, cut), slice(cut, 4)]):
        windows = RewardWindows(Gate.new())
        for part in parts:
            windows.add(
                "small", "all", at_ms=np.full(4, NOW_MS)[part], reward=rewards[part],
                cost_nanousd=unknown[part], latency_ms=unknown[part], error=errors[part],
            )  # fmt: skip
        pages.append(windows.dump_page("small all"))
    assert pages[0] == pages[1]


class Memory:
    """A table; while it is ``broken``, a write fails after it has reached the server."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.broken = False

    async def put(self, partition: int, values: Mapping[bytes, bytes | None]) -> None:
        if self.broken:
            raise ConnectionError
        for key, value in values.items():
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = value


class Silent:
    """An outbox to which nothing needs to be sent."""

    def __init__(self) -> None:
        self.outbox = self

    async def flush(self) -> None:
        return

    async def send(self, key: None, values: Sequence[bytes], *, keys: Sequence[bytes]) -> None:
        return


def opened(machine: Machine, tables: Mapping[str, Memory]) -> Partition:
    """Return a partition that has just been opened, with the machine's state."""
    silent: Any = Silent()
    unused: Any = None
    return Partition(
        number=1, partitions=2, state=machine.state, follower=unused, make_intake=unused,
        tables=tables, decisions=silent, dead_letters=silent, statistics=silent,
        metrics=Metrics(), features="given", committed_outcomes=0, lock=asyncio.Lock(), read_ms=0,
    )  # fmt: skip


async def test_reservation_pages_are_written_first_every_fifth_time_and_after_many_decisions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streams.partition.FOLDED_MOST", 4)
    machine = Machine(catalog())
    partition = opened(machine, {name: Memory() for name in TABLES})
    written = []
    # One decision before each checkpoint; four of them before the ninth.
    for count in (1, 1, 1, 1, 1, 1, 1, 1, 4, 1, 1):
        start = machine.state.gate.position.decisions
        new = [incoming(n, at_ms=NOW_MS, offset=n) for n in range(start, start + count)]
        machine.decide(new, now_ms=NOW_MS)
        await partition.checkpoint()
        written.append(not any(kind == "reservation" for kind, *_ in machine.state.gate.dirty))
    assert [n for n, done in enumerate(written, 1) if done] == [1, 5, 6, 9, 11]


@pytest.mark.parametrize("broken", TABLES)
async def test_pages_of_which_the_write_failed_are_written_again(broken: str) -> None:
    machine = Machine(catalog())
    machine.decide([incoming(n, at_ms=NOW_MS, offset=n) for n in range(3)], now_ms=NOW_MS)
    machine.settle(
        id=digest(0), at_ms=NOW_MS, input_tokens=50, output_tokens=9, usage_print=1, reward=0.5
    )
    tables = {name: Memory() for name in TABLES}
    partition = opened(machine, tables)
    tables[broken].broken = True
    with pytest.raises(ConnectionError):
        await partition.checkpoint(everything=True)
    tables[broken].broken = False
    await partition.checkpoint(everything=True)
    values = {key: value for table in tables.values() for key, value in table.values.items()}
    kept = msgspec.msgpack.decode(values[POSITION_KEY], type=Kept)
    machine.tables, machine.kept = whole_pages(values, kept), kept.position
    live = machine.content()
    machine.crash()
    assert machine.content() == live


def test_a_link_depends_on_all_before_it() -> None:
    first = seal(ORIGIN, LINK)
    other = seal(ORIGIN, LINK._replace(next_line=5))
    second = LINK._replace(link=2)
    assert seal(first.sha256, second).sha256 != seal(other.sha256, second).sha256


def test_a_head_counts_only_as_it_was_signed() -> None:
    key, link = bytes(range(32)), seal(ORIGIN, LINK)
    head = sign(key, link)
    assert is_genuine(key, head)
    for change in ({"sha256": "0" * 64}, {"next_line": 5}, {"link": 2}, {"signature": "0" * 64}):
        assert not is_genuine(key, msgspec.structs.replace(head, **change)), change
    other = sign(bytes(32), link)
    assert not is_genuine(key, other)


class Elsewhere:
    """A producer whose batches the broker appends at offset 6."""

    def __init__(self) -> None:
        self.count = 0

    def create_batch(self) -> Elsewhere:
        return self

    def append(self, **_: Any) -> bool:
        self.count += 1
        return True

    def record_count(self) -> int:
        return self.count

    def close(self) -> None:
        return

    async def send_batch(self, _: Any, topic: str, *, partition: int) -> asyncio.Future[Any]:
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(SimpleNamespace(offset=6))
        return answer


async def test_a_record_that_lies_elsewhere_ends_the_worker() -> None:
    producer: Any = Elsewhere()
    outbox = Outbox(producer, "decisions", 0)
    await outbox.send(None, [b"a"], first_offset=6)
    await outbox.flush()
    await outbox.send(None, [b"a"])
    await outbox.flush()
    await outbox.send(None, [b"a"], first_offset=5)
    with pytest.raises(OverlapError, match=r"decisions/0: wrote at 6, expected 5"):
        await outbox.flush()


@pytest.mark.parametrize("seed", [0, 2, 4, 5, 6, 7, 8, 18, 22])
def test_simulated_seeds_keep_the_laws(seed: int) -> None:
    """Seeds of ``tests/simulate.py``, each with a fault that a planted bug does not survive."""
    assert run_seed(seed).records > 0
