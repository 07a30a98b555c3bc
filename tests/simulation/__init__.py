"""The whole virtual server in one deterministic process: README.md says how to use it."""
