"""Which model is good enough."""
