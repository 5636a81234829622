"""The paper's experiments on images, each one command."""
