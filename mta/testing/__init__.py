"""Public tools for tests: a Lab, conformance suites, virtual time, a forgetful disk."""
