"""``python -m sims_toy.control``."""

from sims_core.lab.study import main
from sims_toy.control import run_command

if __name__ == "__main__":
    main(run_command)
