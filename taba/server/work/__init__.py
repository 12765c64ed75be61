"""Handlers at work: Taba's own in this process, all others in a child process that may hang or crash."""
