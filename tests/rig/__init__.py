"""Real processes, real peers, real sockets, in network namespaces of their own. Run: `make rig`."""
