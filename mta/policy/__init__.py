"""Checks and changes on the way in."""
