"""``python -m sims_toy.stability``."""

from sims_core.lab.study import main
from sims_toy.stability import run_command

if __name__ == "__main__":
    main(run_command)
