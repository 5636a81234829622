"""``python -m sims_toy.stability``."""

from sims_toy.studies import main

if __name__ == "__main__":
    main("stability")
