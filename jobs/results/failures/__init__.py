"""Why runs failed: the kind and the evidence of one failure, what the log says, and what failures have in common."""
