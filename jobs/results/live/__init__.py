"""What a run does that runs now: how far it has come, whether it still makes steps, and the screen that shows it."""
