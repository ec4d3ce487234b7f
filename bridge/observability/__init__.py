"""Metrics, logs, and what was answered of late."""
