"""What a training step does and in which order, and the loop that repeats it."""
