"""Text to one frozen Config, or every error with line and column."""
