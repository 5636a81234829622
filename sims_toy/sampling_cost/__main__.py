"""``python -m sims_toy.sampling_cost``."""

from sims_toy.studies import main

if __name__ == "__main__":
    main("sampling_cost")
