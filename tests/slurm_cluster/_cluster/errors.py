"""The two errors of a `cluster` command."""


class ClusterError(Exception):
    """A command failed; the message is for a person and may have several lines (exit status 1)."""


class CannotRunHereError(ClusterError):
    """This machine or user cannot run the cluster at all; the message is one line (exit status 3)."""
