"""Who may go now."""
