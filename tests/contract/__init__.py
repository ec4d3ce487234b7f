"""The wire contract, case by case over every transport: add a case, not a test."""
