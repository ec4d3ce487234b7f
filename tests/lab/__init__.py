"""Real servers, simulated boards and plain requesters that the tests run against."""
