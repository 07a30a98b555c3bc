"""Control and submission sockets, logs, metrics, HTTP."""
