"""A server that draws texts from a language model for many clients at once, over HTTP.

fields     what requests hold: checks with errors in JSON, and the OpenAPI description
engine     the thread that draws all clients' texts in one batch
guard      who may ask: Host, Origin, token; headers and log lines of every answer
app        the routes
server     uvicorn, signals, the end
page.*     the page at /: HTML, CSS and JavaScript

Needs the extra `serve` (uvicorn and Starlette), which `app`, `guard` and `server` alone import.
"""
