"""Thousands of small score networks: layout, training, backends, and the learner over them."""
