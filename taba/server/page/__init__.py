"""The page that people open: its files, who logs in, and boards."""
