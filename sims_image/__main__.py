"""The command ``sims_image VERB [options]`` (`sims_image.commands`)."""

from __future__ import annotations

import sys

from sims_core.lab.command import main_with_errors
from sims_image.commands import overview, run


def main() -> None:
    """Entry point. Without a verb, what there is."""
    if len(sys.argv) < 2:
        print(overview(), file=sys.stderr)
        sys.exit(2)
    sys.exit(main_with_errors(run))


if __name__ == "__main__":
    main()
