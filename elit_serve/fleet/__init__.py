"""Many engines behind one HTTP server: replicas, how orders find them, and Ray Serve, which keeps them running."""
