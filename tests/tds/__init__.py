"""A test double of a server that speaks TDS, for Microsoft's own ODBC driver.

    packets.py   the bytes: packets, TLS inside PRELOGIN packets, tokens of answers
    server.py    the process: sessions, what it records of them, what it is told to refuse
    double.py    the handle that tests hold

It proves the wire (which token, which session, which reset), not the semantics of SQL Server.
Source: [MS-TDS], Microsoft's description of the protocol.
"""
