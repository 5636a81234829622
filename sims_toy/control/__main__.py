"""``python -m sims_toy.control``."""

from sims_toy.control import run_command
from sims_toy.grid.study import main

if __name__ == "__main__":
    main(run_command)
