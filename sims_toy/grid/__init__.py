"""Cells in, distances of every trial and generation out."""
