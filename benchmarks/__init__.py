"""Measures the bridge beside what a user would otherwise pick, and beside the machine's limit."""
