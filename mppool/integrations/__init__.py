"""Where mppool meets other people's software. Nothing here is imported unless it is used."""
