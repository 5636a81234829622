"""``python -m sims_toy.bias``."""

from sims_toy.studies import main

if __name__ == "__main__":
    main("bias")
