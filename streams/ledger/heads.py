"""Signed heads of the ledger's chains, published where the database's roles cannot write.

A head says: this link, with this hash, was committed. A sink publishes the last link that it
knows to be committed, never one that is in doubt. So a head that was published is in the chain
for good; one that a crash kept from being published is made good by a later one, which covers
every link before it; one that is published twice says the same twice.

The signature is an HMAC: who holds the key could forge heads, so it belongs to sinks and auditors
and not into the database's reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from streams.ledger.chain import Link
from streams.ledger.errors import LedgerKeyError
from streams.records import BadRecordError, LedgerHead, decode, encode

log = logging.getLogger(__name__)

KEY_BYTES: Final = 32
PUBLISH_S: Final = 5.0
"""How often a partition's head is published while its chain grows."""
_SEND_S: Final = 5.0


def load_key(path: Path, *, create: bool = False) -> bytes:
    """Return the key in a file of hexadecimal digits; ``create`` makes one where there is none.

    Raises
    ------
    LedgerKeyError
        If there is no key, or what is there is none.
    """
    try:
        if create and not path.exists():
            _make_key(path)
        key = bytes.fromhex(path.read_text())
    except OSError as error:
        raise LedgerKeyError(path, str(error.strerror)) from error
    except ValueError as error:
        raise LedgerKeyError(path, "it does not hold hexadecimal digits") from error
    if len(key) < KEY_BYTES:
        raise LedgerKeyError(path, f"a key has {KEY_BYTES} bytes or more, this one {len(key)}")
    return key


def _make_key(path: Path) -> None:
    """Make a key that only the owner can read; of two sinks that do it at once, one succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    with contextlib.suppress(FileExistsError):
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        os.link(draft, path)
    draft.unlink()


def sign(key: bytes, link: Link) -> LedgerHead:
    """Return the signed head of a link."""
    head = LedgerHead(
        partition=link.partition,
        link=link.link,
        sha256=link.sha256.hex(),
        next_decision=link.next_decision,
        next_outcome=link.next_outcome,
        next_line=link.next_line,
        key_id=key_id(key),
        signature="",
    )
    head.signature = _signature(key, head)
    return head


def key_id(key: bytes) -> str:
    """Return what names the key without telling it."""
    return hashlib.sha256(b"tollway ledger head key " + key).hexdigest()[:16]


def is_genuine(key: bytes, head: LedgerHead) -> bool:
    """Return whether the head was signed with this key."""
    if head.key_id != key_id(key):
        return False
    return hmac.compare_digest(_signature(key, head).encode(), head.signature.encode())


def _signature(key: bytes, head: LedgerHead) -> str:
    places = (head.partition, head.link, head.next_decision, head.next_outcome, head.next_line)
    text = " ".join(["tollway ledger head 1", *map(str, places), head.sha256, head.key_id])
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


class HeadPublisher:
    """Publishes heads; what cannot be published is tried again with a later head."""

    def __init__(self, kafka: str, topic: str, key: bytes) -> None:
        self._topic, self._key = topic, key
        self._producer = AIOKafkaProducer(
            bootstrap_servers=kafka, acks="all", enable_idempotence=True, client_id="tollway-ledger"
        )
        self._published: dict[int, bytes] = {}
        self._next_s = 0.0

    async def start(self) -> None:
        """Connect."""
        await self._producer.start()

    async def stop(self) -> None:
        """Disconnect, without waiting longer for a broker that does not answer."""
        with contextlib.suppress(TimeoutError, KafkaError):
            await asyncio.wait_for(self._producer.stop(), _SEND_S)

    async def publish(self, links: Iterable[Link], *, at_once: bool = False) -> None:
        """Publish the heads that are new, if it is time to; links must be committed."""
        now_s = asyncio.get_running_loop().time()
        if now_s < self._next_s and not at_once:
            return
        self._next_s = now_s + PUBLISH_S
        new = [link for link in links if self._published.get(link.partition) != link.sha256]
        if not new:
            return
        try:
            await asyncio.wait_for(self._send(new), _SEND_S)
        except (KafkaError, TimeoutError) as error:
            log.warning("heads were not published: %s", type(error).__name__)
            return
        self._published |= {link.partition: link.sha256 for link in new}

    async def _send(self, links: list[Link]) -> None:
        sent = [
            await self._producer.send(
                self._topic, encode(sign(self._key, link)), key=str(link.partition).encode()
            )
            for link in links
        ]
        await asyncio.gather(*sent)


async def read_heads(
    consumer: AIOKafkaConsumer, topic: str
) -> tuple[dict[int, list[LedgerHead]], list[int]]:
    """Return the published heads by partition, and the offsets of records that are none."""
    place = TopicPartition(topic, 0)
    heads: dict[int, list[LedgerHead]] = {}
    unreadable: list[int] = []
    if topic not in await consumer.topics():
        return heads, unreadable
    consumer.assign([place])
    start = (await consumer.beginning_offsets([place]))[place]
    end = (await consumer.end_offsets([place]))[place]
    consumer.seek(place, start)
    while start < end and await consumer.position(place) < end:
        for message in (await consumer.getmany(timeout_ms=500)).get(place, []):
            try:
                head = decode(LedgerHead, message.value)
            except BadRecordError:
                unreadable.append(message.offset)
            else:
                heads.setdefault(head.partition, []).append(head)
    return heads, unreadable
