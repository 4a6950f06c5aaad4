"""The laws: a file for each form, with its parameters, its gradients and its source."""
