"""Brokers and databases of several machines, and the bridge on them: `tests/clusters/run`."""
