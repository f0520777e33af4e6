"""`sweep doctor`: whether a sweep will work on a cluster, before it waits in the queue."""
