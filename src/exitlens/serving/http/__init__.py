"""What stands between the network socket and the answers: connections, limits, routes."""
