"""Training: the configuration, the objective, the loop with its snapshots, and the resulting model."""
