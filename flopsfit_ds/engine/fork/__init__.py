"""A preloaded server, and the processes that are forked from it."""
