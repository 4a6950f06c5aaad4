"""From documents to one file of ids: in pieces, by several processes, and from where a kill left it."""
