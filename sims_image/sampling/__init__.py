"""Images out of models: guided or not, streamed or as a data set."""
