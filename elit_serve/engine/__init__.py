"""Running a checkpoint: files to weights, requests to pictures."""
