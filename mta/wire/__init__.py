"""Sans-IO protocol machines: bytes in, events and bytes out."""
