"""An engine that takes the time of a device instead of computing, for trying out what lies around it."""
