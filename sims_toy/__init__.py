"""SIMS at toy scale: exact Gaussian theory, trained score networks, and the sweeps over them."""
