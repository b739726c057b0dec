"""How the server is watched: metrics, logs, traces, the arrival log and the live view, each by a module of its name.

Below the service that tells them what happens; none of them knows a route but the live view, which has its own.
"""
