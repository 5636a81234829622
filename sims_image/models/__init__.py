"""Networks, their presets, their checkpoints, and those of others."""
