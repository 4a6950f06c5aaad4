"""Folders of chunks with an index: what others wrote to stream from."""
