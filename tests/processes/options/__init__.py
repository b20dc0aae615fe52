"""What every option of a pool means, with real processes."""
