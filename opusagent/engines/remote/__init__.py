"""Endpoints on the network that speak the OpenAI API, whatever is asked of them.

An `endpoint` is reached over warm connections (`transport`, which takes `bodies` out of their frames), left alone while
it fails (`breaker`), chosen by `preference` and sometimes by a `race`; an answer that broke off is taken up by another
one (`continuing`).  A `session` is its Realtime side: some are kept open to `spare`, and all take `audio` the same way.
"""
