"""Training: a configuration, the objective, the loop with its checkpoints, and what comes out of it."""
