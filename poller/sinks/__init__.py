"""Sinks: where events go. Each is a short file, `send` and `probe`, and knows neither state nor API.

A sink turns a batch into a request and the answer into an outcome; `poller.core.delivery` decides what follows.
`base` says what a sink is, `build` which one a table of the configuration describes.
"""
