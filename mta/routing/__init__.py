"""Address spaces to connectors by least cost."""
