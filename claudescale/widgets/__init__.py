"""Widgets to choose a plan before a run, and to follow a run."""
