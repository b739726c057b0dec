"""Jobs: requests for pictures that are accepted now, made when there is room, and outlive the server's process."""
