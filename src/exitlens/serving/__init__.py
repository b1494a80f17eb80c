"""Answers requests: models in memory, samples of all requests in one router, and the routes that lead there."""
