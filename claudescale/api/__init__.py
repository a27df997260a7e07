"""The API's models, prices, limits, connection and answers."""
