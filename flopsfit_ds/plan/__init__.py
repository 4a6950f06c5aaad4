"""From a spec to every number of every run."""
