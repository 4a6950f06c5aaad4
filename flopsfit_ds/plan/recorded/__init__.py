"""What the folder of a sweep already says: that an earlier version began it, and which runs were chosen."""
