"""Pickles read as data: nothing that a stream asks for is imported or called."""
