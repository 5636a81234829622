"""Data sets of images: read from anything, prepared, written, derived."""
