"""``python -m sims_toy.control``."""

from sims_toy.studies import main

if __name__ == "__main__":
    main("control")
