"""Turns rows into requests, and replies into typed columns."""
