"""``python -m sims_toy.pollution``."""

from sims_toy.studies import main

if __name__ == "__main__":
    main("pollution")
