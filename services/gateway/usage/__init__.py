"""What an account used: its own ledger rows, summed by day and endpoint."""
