"""``python -m sims_toy.mad``."""

from sims_core.lab.study import main
from sims_toy.mad import run_command

if __name__ == "__main__":
    main(run_command)
