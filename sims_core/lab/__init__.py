"""What every study and command needs: options, grids, run folders, figures, notebooks."""
