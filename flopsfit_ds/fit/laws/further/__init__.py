"""Forms of law that need a further column: experts, families, bits."""
