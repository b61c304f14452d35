"""The state of a worker against the state that the topics alone give."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from policy.reservation_rows import NONE, ROW_DTYPE
from policy.segments import SEGMENT
from policy.state import State
from streams import topics
from tests.simulation.process import Process, Rates
from tests.simulation.worker import Worker

if TYPE_CHECKING:
    from tests.simulation.run import Simulation


def roots_of(partitions: int) -> dict[str, int]:
    """Return one budget root for each partition, with the partition."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < partitions:
        root = f"root{number}"
        found.setdefault(topics.home_partition(root.encode(), partitions), root)
        number += 1
    return {root: partition for partition, root in sorted(found.items())}


def content(state: State) -> dict[str, Any]:
    """Return all that a state holds, by names instead of the numbers that it gave them."""
    # Windows begin when the first request after their start comes; a fold need not see it.
    state.budgets.roll(np.arange(len(state.budgets.names)), state.clock_ms)
    rows: dict[int, Any] = {}
    for _, number in state.reservations.pages():
        places, raw, features, arms, budgets, segments = msgspec.msgpack.decode(
            state.reservations.dump_page(int(number))
        )
        found = np.frombuffer(raw, ROW_DTYPE)
        of_row = len(features) // len(found)
        for at, (place, row) in enumerate(zip(np.frombuffer(places, "<u2"), found, strict=True)):
            fields = dict(zip(ROW_DTYPE.names or (), row.item(), strict=True))
            fields["arm"] = None if fields["arm"] == NONE else arms[fields["arm"]]
            fields["segment"] = segments[fields["segment"]]
            fields["budgets"] = dict(budgets)[fields["budgets"]]
            fields["features"] = features[at * of_row : (at + 1) * of_row]
            rows[int(number) * SEGMENT + int(place)] = fields
    return {
        "decisions": rows,
        "budgets": state.budgets.content(),
        "windows": {key: state.windows.dump_page(" ".join(key)) for key in state.windows.keys()},  # noqa: SIM118
        "arms": {
            arm.arm: msgspec.msgpack.decode(state.dump_page(("arm", arm.arm)))[-1]
            for arm in state.catalog.arms
        },
        "ring": msgspec.msgpack.decode(state.dump_page(("ring", "")))[-1],
        "parked": {offset: arrival for offset, (arrival, _) in state.parked.items()},
    }


async def check_state(world: Simulation, number: int) -> None:
    """Compare the live state with those of two workers who begin anew, with tables and without."""
    (holding,) = [h for w in world.workers for h in w.held.values() if h.number == number]
    live = holding.partition
    assert live is not None
    # A fold may end with the catalog of its last decision; the next requests bring the newest.
    live._refresh()
    await live.checkpoint(everything=True)
    wanted = content(live.state)
    for what in ("the topics", "the tables"):
        process = Process(f"reader of {what}", random.Random(0), Rates(), lambda *_: None)
        reader = Worker(process, world.broker, world.group, world.limits)
        for table in reader.tables[number].values():
            table.open_partitions({number})
            if what == "the tables":
                log = world.broker.logs[table.changelog_topic_name, number]
                table.restore(number, log)
        while reader.follower.catalog.offset != live.state.catalog.offset:
            await process.hop()
        opened = await reader.open(number)
        opened._refresh()
        # Outcomes that no decision has seen are delivered, not folded.
        outcomes = world.broker.logs[topics.OUTCOMES, number]
        await opened.on_outcomes(outcomes[opened.state.gate.position.outcomes :])
        found = content(opened.state)
        process.end()
        for part, of_live in wanted.items():
            assert found[part] == of_live, (
                f"partition {number}: {part} from {what}: {_difference(of_live, found[part])}"
            )


def _difference(live: Any, found: Any) -> str:
    if not isinstance(live, dict) or not isinstance(found, dict):
        return "differs"
    keys = [k for k in live.keys() | found.keys() if live.get(k) != found.get(k)]
    shown = min(keys, key=str)
    return f"{len(keys)} differ, first {shown}: live {live.get(shown)}, found {found.get(shown)}"
