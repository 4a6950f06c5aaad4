"""What every step stands on: errors, units, hardware, files, presets, code of the user."""
