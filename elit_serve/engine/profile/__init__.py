"""What steps cost on this device: which are prepared, and how they are measured."""
