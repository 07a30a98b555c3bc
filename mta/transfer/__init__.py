"""Intake, schedule, agent, report: what happens to a message inside."""
