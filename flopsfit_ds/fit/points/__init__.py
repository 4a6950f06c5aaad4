"""Points of a law: read from tables and records."""
