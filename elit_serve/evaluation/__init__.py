"""What a checkpoint's pictures are worth at every level, measured against photographs."""
