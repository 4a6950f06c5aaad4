"""Commands after training: fit, predict, report."""
