"""What lies on disk, as pydantic models that writer and reader share, and how it is opened safely."""
