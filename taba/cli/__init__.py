"""The `taba` command: asks Servers and Agents over HTTP, and turns lines into events."""
