"""Proofs that can be run on anybody's frames: what comes out is compared with what is known to be true."""
