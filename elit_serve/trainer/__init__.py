"""Training an elastic model from a recipe and exporting it as a deployable directory."""
