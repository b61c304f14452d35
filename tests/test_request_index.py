"""Requests are found by digest exactly, also where digests begin alike or buckets are full."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy import request_index
from policy.pages import Gate
from policy.paths import Paths
from policy.request_index import WIDTH, RequestIndex, _tags
from policy.reservation_rows import NONE, blank_rows
from policy.reservations import Reservations


def digest(head: int, tail: int) -> bytes:
    return head.to_bytes(4, "little") + tail.to_bytes(12, "little")


# Few heads, so that tags are shared, within one bucket or far apart.
heads = st.sampled_from([0, 1, 2, 3, 1 << 26, 1 << 31, (1 << 31) + 2, (1 << 32) - 1])
digests = st.builds(digest, st.one_of(heads, st.integers(0, 80)), st.integers(0, 3))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(digests, min_size=1, max_size=12, unique=True)),
        st.tuples(st.just("remove"), st.lists(digests, min_size=1, max_size=12, unique=True)),
    ),
    max_size=30,
)


@given(steps=steps, asked=st.lists(digests, max_size=12))
def test_the_index_is_a_dictionary(steps, asked):
    index, wanted, offset = RequestIndex(), {}, 0
    with mock.patch.object(request_index, "NEWEST", 4):
        index._move_at = 4
        for what, ids in steps:
            if what == "add":
                ids = [id_ for id_ in ids if id_ not in wanted]
                added = dict(zip(ids, range(offset, offset + len(ids)), strict=True))
                index.add(ids, np.array([*added.values()], np.int64))
                wanted |= added
                offset += len(ids)
            else:
                ids = [id_ for id_ in ids if id_ in wanted]
                index.remove(ids, np.array([wanted.pop(id_) for id_ in ids], np.int64))
    assert len(index) == len(wanted)
    known = [*wanted]
    assert index.candidates(known).tolist() == [wanted[id_] for id_ in known]
    assert [index.candidate(id_) for id_ in known] == [wanted[id_] for id_ in known]
    # Of what is unknown there may be a candidate: another digest, with the same tag.
    ids_of = {at: id_ for id_, at in wanted.items()}
    assert index.candidates(asked).tolist() == [index.candidate(id_) for id_ in asked]
    for id_, at in zip(asked, index.candidates(asked).tolist(), strict=True):
        assert at == wanted.get(id_, NONE) or id_ not in wanted
        assert at == NONE or _tags([ids_of[at]]) == _tags([id_])


def test_many_digests_lie_in_arrays_and_are_found():
    rng = np.random.default_rng(5)
    ids = [rng.bytes(16) for _ in range(30_000)]
    index = RequestIndex()
    for start in range(0, len(ids), 250):
        index.add(ids[start : start + 250], np.arange(start, start + 250))
    assert index.candidates(ids).tolist() == list(range(len(ids)))
    assert len(index) == len(ids)
    # The dictionary holds the newest and the few whose bucket is full.
    assert len(index._newest) < request_index.NEWEST + len(ids) // 50
    size = index._tags.nbytes + index._offsets.nbytes
    assert size / len(ids) < 36
    index.remove(ids[:29_000], np.arange(29_000))
    assert len(index) == 1_000
    assert index.candidates(ids[29_000:]).tolist() == list(range(29_000, 30_000))
    assert (index.candidates(ids[:29_000]) == NONE).all()


def test_digests_made_to_fill_one_bucket_are_found_too():
    ids = [digest(0, tail) for tail in range(1_000)]
    ids += [digest(2 * head, 0) for head in range(1, 1_000)]
    with mock.patch.object(request_index, "NEWEST", 1):
        index = RequestIndex()
        for at, id_ in enumerate(ids):
            index.add([id_], np.array([at]))
    assert index.candidates(ids).tolist() == list(range(len(ids)))
    assert np.count_nonzero(index._tags) == WIDTH


def test_a_digest_that_is_added_again_has_the_new_offset():
    index = RequestIndex()
    for start in (0, 5_000):
        index.add([digest(2 * n, n) for n in range(2_000)], np.arange(start, start + 2_000))
    assert index.candidate(digest(6, 3)) == 5_003
    assert index.candidates([digest(2 * n, n) for n in range(9)]).tolist() == [*range(5_000, 5_009)]


@pytest.mark.parametrize("count", [1, 9], ids=["few", "many"])
def test_another_request_with_the_same_tag_is_unknown(count):
    gate = Gate.new()
    with mock.patch.object(request_index, "NEWEST", 1):
        remembered = Reservations(gate, Paths(lambda name: 0), dimensions=1)
    # A digest for each bucket, so that all of them leave the dictionary at once.
    ids = [digest(n << 26, 0) for n in range(64)]
    rows = np.repeat(blank_rows([]), len(ids))
    rows["arm"] = 0
    rows["id"] = np.frombuffer(b"".join(ids), "V16")
    offsets = np.arange(len(ids))
    remembered.add(offsets, rows, ids, np.zeros((len(ids), 1), np.float32))
    same, others = ids[:count], [digest(n << 26, 1) for n in range(count)]
    assert remembered.find_all(same).tolist() == [remembered.find(id_) for id_ in same]
    assert remembered.find_all(same).tolist() == [*range(count)]
    assert remembered._index.candidates(others).tolist() == [*range(count)]
    assert remembered.find_all(others).tolist() == [NONE] * count
    assert [remembered.find(id_) for id_ in others] == [None] * count
    found, rows = remembered.decisions([*same, *others], before=count)
    assert found.tolist() == [*range(count), *[NONE] * count]
    assert rows["arm"].tolist() == [0] * count + [NONE] * count
    found, rows = remembered.decisions(same, before=count - 1)
    assert found.tolist() == [*range(count - 1), NONE]
    assert rows["arm"].tolist() == [0] * (count - 1) + [NONE]
