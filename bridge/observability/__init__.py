"""Metrics, logs, and recent activity."""
