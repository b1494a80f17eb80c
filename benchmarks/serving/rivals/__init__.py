"""What else serves: other servers with the plain backbone, and pools of stages."""
