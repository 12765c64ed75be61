"""Other libraries' instrumentation, recorded as Events: each module here serves one of them, and imports it and the client."""
