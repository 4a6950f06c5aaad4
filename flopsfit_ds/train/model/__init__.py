"""The built-in decoder and its loss."""
