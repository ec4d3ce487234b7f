"""The platform's tables in MySQL or MariaDB, and our own one."""
