"""What HTTP looks like here, whoever answers: the server, or a guest of its such as jobs.

Requests for pictures and answers, bodies, errors, media types and server-sent events. Knows no route and no server.
"""
