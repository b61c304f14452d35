"""Asks the broker which topic a name stands for: a topic that is created anew has another id.

The tables hold what the topics have led to. With another topic under the same name, or with keys in
other partitions, going on would forget money that is spent: a worker refuses, and says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from aiokafka.errors import NodeNotReadyError
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from streams import topics
from streams.topics import TopicError

LOGS = (topics.REQUESTS, topics.DECISIONS, topics.OUTCOMES)
"""The topics of which the tables hold offsets, in the order in which their ids are kept."""
_NO_ID = bytes(16)


class TopicRefusedError(TopicError):
    """Base of what makes a worker end until an operator has acted."""

    exit_code = 78
    """``EX_CONFIG``; starting again would not help."""


class TopicRecreatedError(TopicRefusedError):
    """A topic was deleted and created again: the tables are of its former self."""

    def __init__(self, topic: str, known: bytes, found: bytes) -> None:
        super().__init__(
            f"topic {topic} is another one than the tables know (id {found.hex()}, not "
            f"{known.hex()}): it was deleted and created again, and the offsets that the tables "
            "hold mean nothing in it. Nothing was changed. Put the former topic back from a copy, "
            "or begin anew, with spent money forgotten: delete all topics of this deployment, "
            "changelogs too, and run `tollway topics`"
        )
        self.topic = topic


class PartitionsChangedError(TopicRefusedError):
    """A topic has another number of partitions than the deployment: keys lie elsewhere now."""

    def __init__(self, topic: str, found: int, wanted: int) -> None:
        super().__init__(
            f"topic {topic} has {found} partitions, and this deployment {wanted}: budgets would "
            "have two owners. Nothing was changed. Partitions cannot be taken away again: begin a "
            "new deployment, with topics of its own, and let producers go over to it"
        )
        self.topic = topic


class TopicMissingError(TopicRefusedError):
    """A topic does not exist (any more)."""

    def __init__(self, topic: str) -> None:
        super().__init__(f"topic {topic} does not exist; `tollway topics` creates what is missing")
        self.topic = topic


class _Uuid(AbstractType[bytes]):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class _MetadataResponseV10(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("in_sync", CompactArray(Int32)),
                        ("offline", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataRequestV10(RequestStruct):  # type: ignore[misc]
    """The first version that tells topic ids, since Kafka 2.8; aiokafka knows older ones."""

    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 10
    RESPONSE_TYPE = _MetadataResponseV10
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)
            ),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_operations", Boolean),
        ("include_topic_operations", Boolean),
        ("tags", TaggedFields),
    )


class _MetadataRequest(Request[_MetadataRequestV10]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def build(self, request_struct_class: type[_MetadataRequestV10]) -> _MetadataRequestV10:
        asked: list[Any] = [(_NO_ID, name, {}) for name in self._names]
        return request_struct_class(asked, False, False, False, {})


@dataclass(frozen=True, slots=True)
class TopicFacts:
    """What the broker says of a topic.

    The id is never given to another one; it is empty if the broker has none.
    """

    id: bytes
    partitions: int


async def ask_topics(client: Any, names: list[str]) -> Mapping[str, TopicFacts]:
    """Return what the broker says of these topics; those that do not exist are left out.

    ``client`` is aiokafka's, connected; it may be used by others at the same time.
    """
    node = client.get_random_node()
    try:
        answer = await client.send(node, _MetadataRequest(names))
    except NotImplementedError:
        # A broker that does not know of ids; the numbers of partitions are still checked.
        answer = await client.send(node, MetadataRequest(names, allow_auto_topic_creation=False))
        found = [(error, name, b"", rest[-1]) for error, name, *rest in answer.topics]
    else:
        found = [(error, name, id_, parts) for error, name, id_, _, parts, *_ in answer.topics]
    # A partition without a leader for the moment has an error of its own, not the topic.
    return {name: TopicFacts(id_, len(parts)) for error, name, id_, parts in found if error == 0}


async def check_topics(client: Any, *, partitions: int) -> list[bytes]:
    """Return the ids of the logs, once all fixed topics are there with as many partitions.

    Raises
    ------
    TopicMissingError, PartitionsChangedError
    """
    found = await ask_topics(client, list(topics.TOPICS))
    for name, settings in topics.TOPICS.items():
        if name not in found:
            raise TopicMissingError(name)
        wanted = settings.partitions or partitions
        if found[name].partitions != wanted:
            raise PartitionsChangedError(name, found[name].partitions, wanted)
    return [found[name].id for name in LOGS]


async def check_controller(client: Any) -> None:
    """Raise ``NodeNotReadyError`` while the broker knows no controller, as when it has just begun.

    Without one no topic can be created, and the changelogs are, by Faust, which would not wait.
    """
    await client.force_metadata_update()
    if client.cluster.controller is None:
        raise NodeNotReadyError("the broker knows no controller yet")


def check_ids(known: Sequence[bytes], found: Sequence[bytes]) -> None:
    """Raise :class:`TopicRecreatedError` if a log is not the one that was known."""
    for topic, before, now in zip(LOGS, known, found, strict=False):
        if before and now and before != now:
            raise TopicRecreatedError(topic, before, now)
