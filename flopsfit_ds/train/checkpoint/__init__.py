"""States of a run on disk: written whole or not at all, read back under another layout."""
