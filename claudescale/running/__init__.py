"""Runs: rows are sent, answered and recorded."""
