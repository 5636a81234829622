"""``python -m sims_toy.sampling_cost``."""

from sims_core.lab.study import main
from sims_toy.sampling_cost import run_command

if __name__ == "__main__":
    main(run_command)
