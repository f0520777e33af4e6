"""The two ways in which a `cluster` command fails."""


class ClusterError(Exception):
    """Something went wrong; the message is for a person and may have several lines (exit status 1)."""


class CannotRunHereError(ClusterError):
    """This machine or user cannot host the cluster at all; the message is one line (exit status 3)."""
