"""Training: optimizers, the step, the loop."""
