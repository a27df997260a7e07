"""The ledger: the durable record of what was paid for."""
