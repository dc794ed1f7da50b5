"""The only door to Postgres: connections, numbered migrations, partitions by time, and the byte form of a book's levels.

Plain Postgres 15 to 18, no extension. Services write their own queries in their `store` modules, on pools made here.
"""
