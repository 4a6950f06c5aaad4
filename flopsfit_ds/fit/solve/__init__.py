"""From points to parameters: starts, solver, certificate, resamples, covariance, intervals."""
