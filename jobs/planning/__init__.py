"""From a sweep YAML to a plan: allocations, runs, cluster profile."""
