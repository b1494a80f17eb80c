"""Traces of many samples and classes: how exact their compact form is, and what time and memory they take."""
