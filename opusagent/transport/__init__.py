"""Transport: from a listening socket to whole messages, for every protocol that comes in over TCP.

`net` opens and tunes the sockets, `door` has the least busy worker accept.  A `connection` reads one request head
(`http11`) and becomes a WebSocket (`websocket`), whose plain socket moves to the epoll set that the `loop` sleeps in;
with TLS it stays on the loop's own transport (`transportwire`).  An `inquiry` is what its answer has to wait for, a
`budget` what its peer may send.  `audiosocket` is the one protocol without a head and without frames.  Nothing here
knows what a call is.
"""
