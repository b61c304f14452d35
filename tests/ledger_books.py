"""A ledger for tests: two topics of one partition, what is booked of them, and cut commits."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any

import psycopg
from sqlalchemy import make_url

from streams.ledger import migrate, schema
from streams.ledger.audit import AUDITS, run_audit
from streams.ledger.database import connection_string
from streams.ledger.rows import Raw
from streams.ledger.unit import Batch
from streams.ledger.writer import LedgerWriter
from streams.records import Decision, Outcome, PriceTag, Seen, Usage, decision_id, encode

T0 = 1_800_000_000_000
TTL_MS = 600_000


def decision(request_id: str, *, root: str = "acme", at_ms: int = T0, **changes: Any) -> Decision:
    """Return a decision that reserves 1,000 nano-dollars at 1 per token."""
    fields: dict[str, Any] = {
        "decision_id": decision_id(root, request_id),
        "request_id": request_id,
        "budget": f"{root}/search/key",
        "decided_ms": at_ms,
        "offsets": Seen(0, 0, 0, 100, 0),
        "arm": "small@x",
        "reserved_nanousd": 1_000,
        "expires_ms": at_ms + TTL_MS,
        "price": PriceTag(1, 1_000, 1_000),
    }
    return Decision(**(fields | changes))


def usage(request_id: str, tokens: int, **changes: Any) -> Outcome:
    return Outcome(request_id=request_id, usage=Usage(tokens, 0), **changes)


class Topics:
    """The two topics of one partition, and a writer that books what is appended to them."""

    def __init__(self, database_url: str, *, partition: int = 0, partitions: int = 1) -> None:
        self.url = database_url
        self.writer = LedgerWriter(database_url, decisions="d", outcomes="o")
        self.unit = self.writer.claim(partition, partitions=partitions)
        self.offsets = [0, 0]

    def batch(
        self,
        *records: Decision | Outcome | bytes,
        at_ms: int = T0,
        topic: int = 1,
        key: bytes | None = b"acme",
    ) -> Batch:
        """Append the records; bytes go to the outcomes, or to ``topic``."""
        logs: tuple[list[Raw], list[Raw]] = ([], [])
        for record in records:
            where = topic if isinstance(record, bytes) else int(isinstance(record, Outcome))
            value = record if isinstance(record, bytes) else encode(record)
            logs[where].append(Raw(self.offsets[where], at_ms, value, key))
            self.offsets[where] += 1
        return Batch(decisions=logs[0], outcomes=logs[1])

    def book(self, *records: Decision | Outcome | bytes, **how: Any) -> None:
        self.writer.flush(self.unit, self.batch(*records, **how))

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(connection_string(self.url)) as connection:
            return connection.execute(statement).fetchall()

    def booked(self, request_id: str, *, root: str = "acme") -> dict[str, int]:
        return {
            kind: amount
            for name, kind, amount in self.rows(
                "SELECT decision_id, kind, amount_nanousd FROM transfers ORDER BY line"
            )
            if name == decision_id(root, request_id)
        }

    def wrong(self) -> dict[str, int]:
        """Return which audits find that a promise of the ledger is broken."""
        answers = (run_audit(self.url, name) for name in AUDITS if name != "savings")
        return {answer.name: answer.wrong for answer in answers if answer.wrong}


@contextmanager
def ledger(postgres: str) -> Iterator[str]:
    """Make a migrated database; migrating one for every test would take longest."""
    name = f"ledger_{uuid.uuid4().hex}"
    with psycopg.connect(connection_string(postgres), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
        url = make_url(postgres).set(database=name).render_as_string(hide_password=False)
        migrate.upgrade(url)
        yield url
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def tamper(url: str, *statements: str) -> None:
    """Change the ledger as one can who may do everything in its database."""
    with psycopg.connect(connection_string(url)) as connection:
        connection.execute("SET session_replication_role = replica")
        for statement in statements:
            connection.execute(statement.encode())


def empty(url: str) -> None:
    """Remove every row."""
    names = ", ".join(table.name for table in schema.metadata.sorted_tables)
    tamper(url, f"TRUNCATE {names}")


@contextmanager
def emptied(url: str) -> Iterator[Topics]:
    """Empty the ledger, and claim its partition."""
    empty(url)
    topics = Topics(url)
    yield topics
    topics.writer.close()


class CommitCutter:
    """Stands between client and server and, while ``armed``, cuts the next COMMIT with rows.

    With ``forward`` the server gets the COMMIT, and only its reply is lost.
    """

    def __init__(self, database_url: str, *, forward: bool = False) -> None:
        url = make_url(database_url)
        self._server = (url.host, url.port)
        self.forward, self.armed, self.direct_url = forward, True, database_url
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.cuts = 0
        port = self._listener.getsockname()[1]
        self.url = url.set(host="127.0.0.1", port=port).render_as_string(hide_password=False)
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def close(self) -> None:
        # Closing alone would not wake the thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=10)
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._relay, args=[client])
                self._threads.append(thread)
                thread.start()

    def _relay(self, client: socket.socket) -> None:
        cut = threading.Event()
        with client, socket.create_connection(self._server) as server:
            replies = threading.Thread(target=self._replies, args=[client, server, cut])
            replies.start()
            self._requests(client, server, cut)
            replies.join()

    def _requests(self, client: socket.socket, server: socket.socket, cut: Event) -> None:
        has_rows = False
        with suppress(OSError):
            while data := client.recv(65_536):
                has_rows |= b"COPY" in data
                if has_rows and b"COMMIT" in data and self.armed:
                    self.armed = False
                    self.cuts += 1
                    cut.set()
                    if not self.forward:
                        client.shutdown(socket.SHUT_RDWR)
                        break
                server.sendall(data)
            server.shutdown(socket.SHUT_RDWR)

    def _replies(self, client: socket.socket, server: socket.socket, cut: Event) -> None:
        with suppress(OSError):
            while data := server.recv(65_536):
                if cut.is_set():
                    break
                client.sendall(data)
            client.shutdown(socket.SHUT_RDWR)
