"""A server under many callers at once."""
