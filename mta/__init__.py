"""The message transfer agent that knows where it lives."""
