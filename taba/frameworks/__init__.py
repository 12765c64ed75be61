"""What frameworks do, as Tabs: each module serves the library that it is named after, and imports nothing else but `taba.client`.

Nothing here is imported by anything else of Taba, starts a thread, a process or a timer that nobody asked for, or needs an Agent.
"""
