"""`./run demo`: Taba at work on one machine. A web application under load, watched through Taba alone."""
