"""Continuity: calls outlive their connection, their worker and their node.

A `handover` says all that another worker needs, in `fields` (what of a Realtime call besides is `carried`, and of one
in text all that is `textual`); `takeover` is both ends of it between a worker and its successor.  `resumption` is a
platform that dials again, `arrival` its new connection, and `returning` finds its call: in the worker, on the node's
`shelf`, or, by the `registry` in Redis, at another node.  By its `tenure` a call is ours.
"""
