"""What the ensemble is made of: members of each form, the frontier, and what their past forecasts came to."""
