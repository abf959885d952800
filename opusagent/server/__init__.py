"""The server: one worker, with its routes and its rules for who may come in.

`worker` has the connections, the calls and the tick, `routes` begins what is asked of it.  `gate`, `limits` and
`admission` say who may call and how much is too much; `pages` with its `manual`, `console`, `webhooks` and
`client_secrets` answer HTTP; `archive` and `notices` are what calls leave behind; `garbage` and `stalls` look after the
loop itself, and `pulse` shows that it turns.
"""
