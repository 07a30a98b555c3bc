"""Sendmail's mail filter protocol, version 6: the end of the MTA, which asks filters about mail."""
