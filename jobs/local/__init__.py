"""The local executor and the debugger."""
