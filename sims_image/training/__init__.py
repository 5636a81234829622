"""Training: options, objectives, schedules, batches, the loop and its run folder."""
