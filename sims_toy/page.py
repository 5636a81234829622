"""``python -m sims_toy.page RUN``: write a sweep's interactive page again (`sims_toy.sweep.page`)."""

import sys

from sims_core.lab.command import main_with_errors
from sims_toy.sweep.page import run_command

if __name__ == "__main__":
    sys.exit(main_with_errors(run_command))
