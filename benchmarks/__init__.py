"""Measurements: each is a command that says what it measured, and on which machine."""
