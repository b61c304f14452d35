"""The end of a run: every law checked, the money compared, the references worked out."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from policy.calendar import window_start_ms
from policy.money import NANO_PER_USD
from streams.demo import books
from streams.demo.laws import Booked, Limit, check
from streams.demo.measures import Measures, percentiles
from streams.demo.references import Line, make_world, references
from streams.demo.result import Result, Speed, Spend
from streams.demo.run import Played
from streams.demo.stage import Stage
from streams.demo.topic_log import read_topics
from streams.ledger.audit import run_audit
from streams.ledger.verify import verify

AUDITS = ("trial-balance", "caps", "rederived", "cursors")
"""Audits of the ledger whose answers break a promise if there are any."""


async def conclude(stage: Stage, played: Played, *, seed: int) -> Result:
    """Return what the run has shown; the processes have ended."""
    player = played.player
    log = await read_topics(stage.kafka, [poison.sha256 for poison in player.poison])
    booked = await asyncio.to_thread(books.read_booked, stage.database_url)
    limits = [
        Limit(budget=e.budget, limit_nanousd=e.limit_nanousd, window=e.window)
        for e in played.budgets
    ]
    sent = [player.request_id(number) for number in range(len(played.schedule))]
    verdict = check(log, booked, limits, sent=[*sent, *played.knocks.sent], poison=player.poison)
    report = await verify(stage.kafka, stage.database_url)
    wrong = {
        name: (await asyncio.to_thread(run_audit, stage.database_url, name)).wrong
        for name in AUDITS
    }
    return Result(
        verdict=verdict,
        report=report,
        audits_wrong=wrong,
        spends=_spends(booked, limits, played.measures),
        lines=[_tollway(played, booked), *_references(played, seed)],
        effects=played.story.effects,
        last=played.measures.snapshot(played.decided_s),
        speed=_speed(played),
        example=next(iter(booked)).request_id,
    )


def _spends(
    booked: Sequence[Booked], limits: Sequence[Limit], measures: Measures
) -> Sequence[Spend]:
    spends = []
    for limit in limits:
        if "/" in limit.budget:
            continue
        gone: dict[int, int] = defaultdict(int)
        for row in booked:
            if f"{row.budget}/".startswith(f"{limit.budget}/"):
                gone[window_start_ms(limit.window, row.decided_ms)] += row.gone_nanousd
        spends += [
            Spend(
                budget=limit.budget,
                window=limit.window,
                # What is decided after the last arrival falls into a window that hardly began.
                begun_s=0.0 if start == 0 else (start - measures.epoch_ms) / 1_000,
                limit_nanousd=limit.limit_nanousd,
                gone_nanousd=amount,
            )
            for start, amount in sorted(gone.items())
        ]
    return spends


def _tollway(played: Played, booked: Sequence[Booked]) -> Line:
    """Return the run's own line: a request that was rejected earned nothing."""
    reward = sum(call.reward for call in played.player.calls.values()) / len(played.schedule)
    spent = sum(row.gone_nanousd for row in booked) / NANO_PER_USD
    return Line(name="Tollway", reward=reward, spent_usd=spent, note="learns as it goes")


def _references(played: Played, seed: int) -> Sequence[Line]:
    world = make_world(
        played.schedule, played.truth, played.prices, cut_s=played.story.cut_s,
        drop_s=played.story.drop_s, dropped_arm=played.player.dropped_arm,
        run_nanousd=played.run_nanousd,
    )  # fmt: skip
    return references(world, seed=seed)


def _speed(played: Played) -> Speed:
    measures, story = played.measures, played.story
    everything = percentiles([ms for _, ms in measures.latencies])
    calm = percentiles(
        [ms for sent_s, ms in measures.latencies if not story.kill_s <= sent_s < story.back_s]
    )
    within = [n for s, n in measures.in_flight_seen if 2.0 <= s <= played.schedule.duration_s]
    low, middle, high = np.percentile(np.array(within or [0]), [10, 50, 100]).tolist()
    return Speed(
        p50_ms=everything[0],
        p99_ms=everything[1],
        calm_p50_ms=calm[0],
        calm_p99_ms=calm[1],
        decisions_per_s=len(measures.latencies) / played.decided_s,
        in_flight_p10=low,
        in_flight_p50=middle,
        in_flight_max=high,
    )
