"""What follows from the rows of several runs: groups of seeds, scaling, comparisons, the best run."""
