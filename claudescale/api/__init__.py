"""What the API is, costs, allows and says."""
