"""From points to parameters: losses, starts, solver, bootstrap, certificate, intervals."""
