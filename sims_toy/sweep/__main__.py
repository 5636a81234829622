"""``python -m sims_toy.sweep``."""

from sims_core.lab.study import main
from sims_toy.sweep import run_command

if __name__ == "__main__":
    main(run_command)
