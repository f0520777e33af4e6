"""From a plan to its jobs: which runs are sent, sent again or cancelled."""
