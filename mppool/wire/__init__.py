"""What travels between a process and the server: frames, messages, and the handshake.

frame     4 bytes length, big-endian, then one message in MessagePack
message   an event (to the server), a decision (from it), or one of the few messages in messages.py

process                                   server
  | -- Hello(errand) ----------------------> |   who I am, which protocol I speak
  | <-- Welcome(session) ------------------- |   or Rejected, with the reason
  | -- Attach(inventory) ------------------> |   what I hold overrules what was believed
  | <-- Attached --------------------------- |
  | <-- Reclaim, Grant, Keep, Close, Ask --- |   errands, at any time
  | -- Returned, Opened, Closed ... -------> |

a thread                                  server
  | -- Hello(call, session) ---------------> |
  | <-- Welcome ---------------------------- |
  | -- Checkout(ticket) -------------------> |   answered at once
  | <-- Grant | Queued | Refuse ------------ |
"""
