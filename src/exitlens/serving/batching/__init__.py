"""The samples of all requests in one router: tickets, the cascade they go through, and the thread that runs it."""
