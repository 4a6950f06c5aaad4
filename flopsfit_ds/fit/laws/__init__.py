"""The laws: a form, its parameters and their gradients."""
