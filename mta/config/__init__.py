"""Configuration: text -> one frozen Config, or every mistake with its line and column."""
