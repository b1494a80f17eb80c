"""Serving: the load, what else serves, the other design of scaling, and a simulation of both."""
