"""Keeps the store in order: jobs that prune, upgrade, check and retry, and the deletion of Tabs and Clients."""
