"""API keys: made once and shown once, stored as a digest, looked up on every call.

A key is `kb_live_` (or `kb_demo_`) and 32 random letters and digits: 190 bits. That much randomness cannot be guessed or found by
trying, so a plain SHA-256 is the right digest: a slow password hash would protect nothing more and cost every call its time.
"""
