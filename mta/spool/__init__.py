"""The durable store of messages."""
