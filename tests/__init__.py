"""The trial suite: no root, no network, no sleeping."""
