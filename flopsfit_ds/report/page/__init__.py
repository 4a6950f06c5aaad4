"""The page: tables, checks, provenance."""
