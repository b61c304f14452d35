"""Every decoder on bytes that nobody meant: the named error, or a value that can be used."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.catalog import Catalog
from policy.pages import PageKey, Position
from policy.recover import PageError, load
from policy.registry import make_policy
from policy.state import State
from policy.terms import Settings
from streams import decision_log
from streams.following import apply_entry
from streams.intake import Intake
from streams.ledger import rows
from streams.ledger.reading import booked, read_decision, read_outcome, reported, request_of
from streams.records import (
    ArmEntry,
    BadRecordError,
    BudgetEntry,
    BudgetPosition,
    Candidates,
    CatalogEntry,
    DeadLetter,
    Decision,
    Outcome,
    PolicyEntry,
    PriceEntry,
    PriceTag,
    Request,
    Seen,
    Statistics,
    Usage,
    decision_id,
    decode,
    decode_catalog,
    encode,
)
from streams.replay import data
from tests.core_machine import Machine, catalog, digest, incoming
from tests.single import one_outcome, one_request

INT8 = (-(2**63), 2**63 - 1)
FUZZ = settings(
    max_examples=200, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip

SEEN = Seen(request=3, batch=3, outcomes=2, catalog=9, statistics=1)
VALID: dict[type, list[bytes]] = {
    Request: [
        encode(Request(request_id="r1", budget="acme/k", input_tokens=5, max_output_tokens=9,
                       features=[0.5, -1.0], arms=["a@b"], capabilities=["json"],
                       deadline_ms=1, latency_ms_max=5, segment="x")),
        encode(Request(request_id="r2", budget="acme", input_tokens=5, max_output_tokens=9,
                       features_b64="AAAAPwAAgL8=")),
    ],
    Decision: [
        encode(Decision(
            decision_id=decision_id("acme", "r1"), request_id="r1", budget="acme/k", decided_ms=7,
            offsets=SEEN, arm="a@b", input_tokens=5, max_output_tokens=9, reserved_nanousd=100,
            expires_ms=9, price=PriceTag(1, 100, 200, None), reward=0.5, cost_nanousd=50,
            propensity=1.0, policy="pareto",
            candidates=Candidates(["a@b"], [0.5], [50], [100], [0.4], [""]),
            budgets=[BudgetPosition("acme", 0, 1_000, 100, 0, 2.5, 0.1)],
        )),
        encode(Decision(decision_id=decision_id("acme", "r2"), request_id="r2", budget="acme",
                        decided_ms=7, offsets=SEEN, rejected="no_arm")),
    ],
    Outcome: [
        encode(Outcome(request_id="r1", decision_id=decision_id("acme", "r1"),
                       usage=Usage(5, 4, 1), reward=0.5, latency_ms=3)),
        encode(Outcome(request_id="r1", cost_nanousd=7, error="late")),
    ],
    Statistics: [encode(Statistics(partition=0, arm="a@b", policy="pareto", decisions=1,
                                   outcomes=1, state_b64="AAAA"))],
    DeadLetter: [encode(DeadLetter(topic="t", partition=0, offset=1, reason="range", detail="",
                                   sha256="00", size=1, at_ms=1))],
}  # fmt: skip
ENTRIES: list[CatalogEntry] = [
    PolicyEntry(dimensions=2, encoder="none", options={"alpha": 0.1}),
    ArmEntry(arm="a@b", capabilities=["json"], prior_reward=0.5, prior_output_tokens=10),
    PriceEntry(arm="a@b", version=1, input=100, output=200, cached=50),
    BudgetEntry(budget="acme/k", limit_nanousd=10**9, window="90s", per_request_nanousd=5),
]
NUMBERS = [b"-1", b"0", b"1e999", b"-0.0", b"1e-400", b"99999999999999999999", b"NaN", b"true",
           b"null", b'"1"', b"[]", b"{}", b"9223372036854775807", b"-9223372036854775809", b"0.1",
           b"1.0", b'"\\u0000"', b'"\\ud800"', b"1" + b"0" * 400]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn, values: list[bytes]) -> bytes:
    """Return one of the values with a few bytes, or a few numbers, changed."""
    value = bytearray(draw(st.sampled_from(values)))
    for _ in range(draw(st.integers(1, 4))):
        at, kind = draw(st.integers(0, len(value))), draw(st.integers(0, 4))
        if kind == 0:
            value[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == 1:
            del value[at : at + draw(st.integers(1, 9))]
        elif kind == 2:
            value[at:at] = draw(st.binary(max_size=6))
        elif kind == 3:
            value[at:at] = value[draw(st.integers(0, at)) : at]
        else:
            digits = [i for i, byte in enumerate(value) if 48 <= byte <= 57]
            if digits:
                at = draw(st.sampled_from(digits))
                end = at + 1
                while end < len(value) and value[end] in b"0123456789.":
                    end += 1
                value[at:end] = draw(st.sampled_from(NUMBERS))
    return bytes(value)


def attempt(read: Callable[[], Any], error: type[Exception]) -> Any:
    """Return what is read, or None if it is refused by the named error; others come through."""
    try:
        return read()
    except error:
        return None


@pytest.mark.parametrize("kind", list(VALID), ids=lambda kind: kind.__name__)
@FUZZ
@given(draw=st.data())
def test_records(kind: type, draw: st.DataObject) -> None:
    value = draw.draw(mutated(VALID[kind]) | st.binary(max_size=80))
    read = attempt(lambda: decode(kind, value), BadRecordError)
    if read is not None:
        assert attempt(lambda: decode(kind, encode(read)), BadRecordError) == read


@FUZZ
@given(value=mutated([encode(entry) for entry in ENTRIES]))
def test_catalog_entries(value: bytes) -> None:
    applied = attempt(lambda: apply_entry(Catalog(), decode_catalog(value)), BadRecordError)
    if applied is not None:
        # A worker makes its state from what was accepted.
        State(dimensions=applied.settings.dimensions, make_policy=make_policy, catalog=applied)


CATALOG = Catalog(settings=Settings(dimensions=2), encoder="none")
for _entry in ENTRIES:
    CATALOG = apply_entry(CATALOG, _entry)


@FUZZ
@given(value=mutated(VALID[Request]), key=st.sampled_from([b"acme", b"", b"\xff", None]))
def test_requests_at_the_intake(value: bytes, key: bytes | None) -> None:
    intake = Intake(CATALOG, None)
    attempt(lambda: one_request(intake, value, key=key), BadRecordError)


@FUZZ
@given(value=mutated(VALID[Outcome]), key=st.sampled_from([b"acme", b"", b"\xff", None]))
def test_outcomes_at_the_intake(value: bytes, key: bytes | None) -> None:
    intake = Intake(CATALOG, None)
    attempt(lambda: one_outcome(intake, value, key=key), BadRecordError)


@FUZZ
@given(value=mutated(VALID[Decision]))
def test_decisions_in_the_ledger(value: bytes) -> None:
    read = attempt(lambda: read_decision(value), BadRecordError)
    if read is not None:
        booked(*read, offset=1)
        fits_postgres(rows.decision_row(0, 1, *read))


@FUZZ
@given(value=mutated(VALID[Outcome]))
def test_outcomes_in_the_ledger(value: bytes) -> None:
    read = attempt(lambda: read_outcome(value), BadRecordError)
    if read is not None:
        identity = request_of(b"acme", read.request_id)
        facts = reported(read, decision_id=identity, offset=1, at_ms=1, clock_ms=1)
        fits_postgres(rows.outcome_row(0, read, facts))


def fits_postgres(row: tuple[Any, ...]) -> None:
    """Fail on what COPY would refuse: numbers beyond 64 bits, NUL and lone surrogates."""
    for value in row:
        if isinstance(value, int):
            assert INT8[0] <= value <= INT8[1]
        elif isinstance(value, str):
            assert "\0" not in value
            value.encode()
        elif isinstance(value, float):
            assert value == value


# -- files


def recorded() -> bytes:
    """Return a small file of recorded data."""
    file = io.BytesIO()
    np.savez_compressed(
        file, model=np.array(["a", "b"]), features=np.ones((3, 2)), reward=np.full((3, 2), 0.5),
        cost_usd=np.full((3, 2), 0.01), names=np.array(["x", "y"], object),
    )  # fmt: skip
    return file.getvalue()


def logged() -> bytes:
    """Return a small log of decisions as arrays."""
    file = io.BytesIO()
    np.savez(
        file, model=np.array(["a", "b"]), arm=np.array([0, 1, 0]), propensity=np.full(3, 0.5),
        reward=np.full(3, 0.5), cost_usd=np.full(3, 0.01),
    )  # fmt: skip
    return file.getvalue()


def resealed(value: bytes, member: str, content: bytes) -> bytes:
    """Return the file with one member changed and its checksum right again."""
    source, target = zipfile.ZipFile(io.BytesIO(value)), io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            archive.writestr(name, content if name == member else source.read(name))
    return target.getvalue()


@FUZZ
@given(value=mutated([recorded()]))
def test_recorded_data(value: bytes, tmp_path: Path) -> None:
    path = tmp_path / "recorded.npz"
    path.write_bytes(value)
    attempt(lambda: data.read(path), data.DataError)


@FUZZ
@given(draw=st.data(), member=st.sampled_from(["model", "features", "reward", "cost_usd"]))
def test_arrays_of_recorded_data(draw: st.DataObject, member: str, tmp_path: Path) -> None:
    whole = recorded()
    array = zipfile.ZipFile(io.BytesIO(whole)).read(f"{member}.npy")
    path = tmp_path / "recorded.npz"
    path.write_bytes(resealed(whole, f"{member}.npy", draw.draw(mutated([array]))))
    attempt(lambda: data.read(path), data.DataError)


@FUZZ
@given(draw=st.data(), member=st.sampled_from(["model", "arm", "propensity", "cost_usd", ""]))
def test_arrays_of_logged_decisions(draw: st.DataObject, member: str, tmp_path: Path) -> None:
    whole = logged()
    if member:
        array = zipfile.ZipFile(io.BytesIO(whole)).read(f"{member}.npy")
        whole = resealed(whole, f"{member}.npy", draw.draw(mutated([array])))
    else:
        whole = draw.draw(mutated([whole]))
    path = tmp_path / "log.npz"
    path.write_bytes(whole)
    attempt(lambda: decision_log.read_log(path), decision_log.LogError)


LINES = [value for kind in (Request, Decision, Outcome) for value in VALID[kind]]
LINES += [encode(entry) for entry in ENTRIES]


@FUZZ
@given(number=st.integers(0, len(LINES) - 1), changed=mutated(LINES))
def test_lines_of_logged_decisions(number: int, changed: bytes, tmp_path: Path) -> None:
    lines = [changed if n == number else line for n, line in enumerate(LINES)]
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(line.replace(b"\n", b" ") for line in lines))
    attempt(lambda: decision_log.read_log(path), decision_log.LogError)


# -- pages


def pages() -> dict[PageKey, bytes]:
    """Return the pages of a partition at work."""
    machine = Machine(catalog())
    machine.decide([incoming(n, at_ms=1_000, offset=n) for n in range(3)], now_ms=1_000)
    machine.settle(
        id=digest(1), at_ms=1_000, input_tokens=50, output_tokens=9, usage_print=9, reward=0.5,
        reward_print=1, latency_ms=3,
    )  # fmt: skip
    machine.flush()
    return machine.tables


PAGES = pages()


@FUZZ
@given(draw=st.data(), page=st.sampled_from(sorted(PAGES, key=str)))
def test_checkpoint_pages(draw: st.DataObject, page: PageKey) -> None:
    changed = {**PAGES, page: draw.draw(mutated([PAGES[page]]) | st.binary(max_size=60))}
    state = Machine(catalog()).new_state()
    attempt(lambda: load(state, changed, position=Position()), PageError)


def test_every_kind_of_page_is_among_them() -> None:
    assert {kind for kind, _ in PAGES} == {"arm", "budget", "reservation", "ring", "window"}


def test_the_records_to_mutate_are_good() -> None:
    for kind, values in VALID.items():
        for value in values:
            assert json.loads(encode(decode(kind, value))) == json.loads(value)
    assert len(CATALOG.arms) == len(CATALOG.budgets) == 1
