"""``python -m sims_toy.mad``."""

from sims_toy.studies import main

if __name__ == "__main__":
    main("mad")
