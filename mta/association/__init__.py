"""Thin Twisted adapters over the wire machines, and the two doors."""
