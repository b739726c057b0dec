"""How the server is watched: metrics, logs, traces, the live view."""
