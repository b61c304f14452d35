"""The consumer group: who owns which partition, who believes so, and what is committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Member(Protocol):
    """What the group asks of its members."""

    async def release(self, partition: int) -> None:
        """Finish, flush, commit and give the partition up."""

    def take(self, partition: int, epoch: int) -> None:
        """Begin to take the partition over."""


@dataclass(slots=True)
class Group:
    """One owner for each partition in each epoch; what older epochs commit is refused."""

    partitions: int
    owner: dict[int, Member | None] = field(default_factory=dict)
    epoch: dict[int, int] = field(default_factory=dict)
    committed: dict[tuple[str, int], int] = field(default_factory=dict)

    def is_owner(self, member: Member, partition: int, epoch: int) -> bool:
        """Return whether the group still says so."""
        return self.owner.get(partition) is member and self.epoch[partition] == epoch

    def commit(self, member: Member, epoch: int, offsets: dict[tuple[str, int], int]) -> None:
        """Take offsets of a member for those partitions that it owns."""
        for (topic, partition), offset in offsets.items():
            if self.is_owner(member, partition, epoch):
                self.committed[topic, partition] = offset

    def give(self, partition: int, member: Member) -> None:
        """Give a partition to a member, whatever its former owner believes."""
        self.owner[partition] = member
        self.epoch[partition] = epoch = self.epoch.get(partition, 0) + 1
        member.take(partition, epoch)

    def lose(self, member: Member) -> Sequence[int]:
        """Forget a member; return the partitions that nobody has now."""
        lost = [p for p, owner in self.owner.items() if owner is member]
        for partition in lost:
            self.owner[partition] = None
        return lost
