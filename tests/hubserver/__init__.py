"""A Hub for tests: a real HTTP server on loopback that the real client of the Hub talks to.

``python -m hubserver --state DIR`` starts it; `process` starts it from a test. Repositories, their
commits and refs are in memory, contents on disk. It answers as huggingface.co answers as far as the
client can tell, keeps a log of requests, and fails on request.
"""
