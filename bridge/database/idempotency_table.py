"""Our own table, for `DEDUP_STORE=mysql`: how it is made, and all statements on it."""

from typing import NamedTuple

TABLE = "bridge_once"

# A table that was made before attempts were numbered needs nothing: `process` is as wide as it was,
# when all of it told one process from another.
CREATE_TABLE = f"""
CREATE TABLE IF NOT EXISTS {TABLE} (
    id BINARY(16) NOT NULL PRIMARY KEY COMMENT 'who asked, and the id of the request',
    fingerprint BINARY(16) NOT NULL COMMENT 'the operation and its fields',
    process BINARY(8) NOT NULL COMMENT 'the process that executes it, and which attempt it is',
    instance VARCHAR(255) NOT NULL COMMENT 'the MQTT_INSTANCE of that process',
    works_until DOUBLE NOT NULL COMMENT 'when that process has given up, in Unix seconds',
    expires_at DOUBLE NOT NULL COMMENT 'when the row may go, in Unix seconds',
    reply MEDIUMBLOB NULL COMMENT 'the answer; null until there is one',
    KEY expires_at (expires_at)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4 COMMENT='At-most-once commands of the MQTT bridge'
"""

# Not UNIX_TIMESTAMP(NOW()): where the server's zone has summer time, it jumps by an hour with it.
NOW = "(TIMESTAMPDIFF(MICROSECOND, '1970-01-01', UTC_TIMESTAMP(3)) / 1e6)"
# Affects no row where the id is taken; two where it has been done before, by a first try whose
# connection was lost, so that the id is ours.
INTEND = f"""
INSERT INTO {TABLE} (id, fingerprint, process, instance, works_until, expires_at)
VALUES (%s, %s, %s, %s, {NOW} + %s, {NOW} + %s)
    ON DUPLICATE KEY UPDATE works_until = IF(process = %s, works_until + 0.001, works_until)
"""  # noqa: S608  the names are our own constants
LOOK = f"""
SELECT id, fingerprint, process, instance, works_until - {NOW}, expires_at - {NOW}, reply
  FROM {TABLE} WHERE id IN %s
"""  # noqa: S608
# Not an UPDATE: what has left is to be known, whatever became of the row meanwhile.
ANSWERED = f"""
REPLACE INTO {TABLE} (id, fingerprint, process, instance, works_until, expires_at, reply)
VALUES (%s, %s, %s, %s, {NOW}, {NOW} + %s, %s)
"""  # noqa: S608
NOT_SENT = f"DELETE FROM {TABLE} WHERE id IN %s AND process IN %s"  # noqa: S608
GONE = f"DELETE FROM {TABLE} WHERE id = %s AND expires_at < {NOW}"  # noqa: S608
SWEEP = f"DELETE FROM {TABLE} WHERE expires_at < {NOW} LIMIT %s"  # noqa: S608


class OutcomeRow(NamedTuple):
    """What is written under an id; times in seconds from now."""

    fingerprint: bytes
    attempt: bytes
    instance: str
    works_for: float
    expires_in: float
    reply: bytes | None
