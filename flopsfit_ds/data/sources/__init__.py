"""Sources of documents: each is looked at while planning, cut into pieces, and read piece by piece."""
