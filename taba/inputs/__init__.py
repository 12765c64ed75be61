"""What other protocols bring: each input is a process of its own, with a parser that does no I/O and a table of what becomes which Tab.

An Agent starts inputs by command and imports none of them; to it they are ordinary clients, whose rings it drains.
"""
