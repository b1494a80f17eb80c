"""From stages to answers: run, compile, route and tune."""
