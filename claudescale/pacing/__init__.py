"""When each call may be sent."""
