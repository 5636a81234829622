"""Normalizing flows as a toy learner: exact likelihoods, density guidance (extra 'flows': zuko)."""
