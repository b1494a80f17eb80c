"""What comes over HTTP: the protocol, the routes and what guards them."""
