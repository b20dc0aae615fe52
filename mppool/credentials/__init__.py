"""Credentials: whose they are, what they are asked for, and what pools and Azure's clients get in their place.

identity.py      a text that names an identity, equal in all processes, or None where only a token can tell
token_struct.py  a token as drivers want it, and how long it lasts
secrets.py       telling tokens apart, and finding one in an error
credential.py    asks a credential, whatever it is; StaticToken
objects.py       credential objects of this process: telling them apart, and copies of them after a fork
loops.py, credential_loops.py   asynchronous credentials: one copy for each event loop
errors.py        what the other processes are told of a failure
source.py        CredentialTokens: the tokens of one credential, shared where its identity is known
shared.py, shared_async.py      SharedCredential: for Azure's clients
adapter.py       CredentialAdapter: for pools

Importing one of these needs none of Azure's packages, and loads no asyncio but for the asynchronous ones.
"""
