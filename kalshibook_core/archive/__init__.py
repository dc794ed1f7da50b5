"""The archive: raw records and canonical events as Parquet files, in a folder or in S3-compatible storage.

What a writer promises and every reader checks. Nothing is ever edited. A file is there whole or not at all, with a manifest
beside it, and counts only once a commit names it. A commit says "these files hold, each once, the records of offsets [first,
next) of this partition of this topic", so the commits themselves are what a writer goes on from: there is no second store that
could disagree. Commits that overlap (two writers that knew nothing of each other) hold the same rows, since a row is a function
of its record alone; `layout.chain` takes each offset from one of them.

Rooms: `layout` where things lie, `tables` events as Parquet and back, `manifest` what is said of a file and of a commit,
`coverage` how whole a file is, `store` a folder or S3, `reader` reading with every proof. The only door to pyarrow.
"""
