"""Frames into pictures and cards."""
