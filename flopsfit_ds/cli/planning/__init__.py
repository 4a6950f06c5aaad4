"""Commands before anything is trained."""
