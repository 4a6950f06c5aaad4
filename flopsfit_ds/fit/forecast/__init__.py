"""From parameters to predictions: optimum, isoFLOP minima, ensemble, back-test."""
