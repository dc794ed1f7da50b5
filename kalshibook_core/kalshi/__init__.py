"""The exchange's language, without I/O: what its frames mean (`messages`, `markets`), what may be said to it (`commands`,
`signing`) and what one connection to it knows (`session`). Nothing here opens a socket, asks the time or draws a number.
"""
