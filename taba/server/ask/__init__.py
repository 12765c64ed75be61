"""Answers questions: which Tabs and Clients are meant, what their States say. Writes nothing."""
