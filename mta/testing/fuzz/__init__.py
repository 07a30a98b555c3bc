"""Octets nobody would send, against everything that reads octets of others."""
