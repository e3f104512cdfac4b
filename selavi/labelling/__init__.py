"""From a model's predictions to cluster labels."""
