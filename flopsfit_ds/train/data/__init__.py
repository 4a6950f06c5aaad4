"""What a run trains on: tokens, items of a dataset, and which of them a step sees."""
