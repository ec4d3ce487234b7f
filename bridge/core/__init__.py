"""From a request to its reply: operations, admission, idempotency, ordering, deadlines."""
