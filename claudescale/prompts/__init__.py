"""Rows into requests, and replies into typed columns."""
