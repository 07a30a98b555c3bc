"""The memory spool keeps every promise of a store."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mta.errors import Full
from mta.model import fresh_state
from mta.spool.memory import MemorySpool, MemorySpoolSettings, MemoryStore
from mta.testing.spool_suite import IAssociationsTests, ISpoolTests, envelope


class MemorySpoolTests(IAssociationsTests, ISpoolTests, SynchronousTestCase):
    capacity = 64 << 20

    def make_spool(self, node: str) -> Any:
        if not hasattr(self, "store"):
            self.store = MemoryStore()
        surroundings = SimpleNamespace(clock=self.clock, node=node)
        return MemorySpool(MemorySpoolSettings(capacity=self.capacity), surroundings, self.store)

    def test_full(self) -> None:
        """Beyond its capacity a message is refused as Full, and nothing of it stays."""
        staging = self.spool.stage("smtp/in/1")
        for _ in range(65):
            staging.write(b"x" * (1 << 20))
        message = envelope()
        self.refused(Full, staging.commit, message, fresh_state(message), b"", None)
        assert self.queued() == []
