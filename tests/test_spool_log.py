"""The log spool keeps every promise of a store, and its own beyond them."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mta.testing.spool_lab import LogLab
from mta.testing.spool_suite import ISpoolTests


class LogSpoolContractTests(LogLab, ISpoolTests, SynchronousTestCase):
    """Segments of 64 KiB, so that every test crosses several."""
