"""What a corpus is: its files, its size, its fingerprint."""
