"""``python -m sims_toy.sweep``."""

from sims_toy.studies import main

if __name__ == "__main__":
    main("sweep")
