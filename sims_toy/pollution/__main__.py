"""``python -m sims_toy.pollution``."""

from sims_core.lab.study import main
from sims_toy.pollution import run_command

if __name__ == "__main__":
    main(run_command)
