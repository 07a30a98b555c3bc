"""Benchmarks: they print tables and assert nothing. Run: `make bench`."""
