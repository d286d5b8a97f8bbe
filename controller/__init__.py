"""The controller decides what is true of a cluster, by appending facts to a log that everybody can read.

Read it in this order. `facts` and `commands`: what can become true, and what can be asked for. `state` with its parts
(`topics`, `brokers`, `wals`, `log_index`, `objects`, `configs`, `answers`): what facts make of a cluster; `apply` alone
changes it. `decide`: pure functions from (state, command) to facts and an answer; `batch` says which share an entry.
`entries`, `metadata_log`, `object_log`: where facts are kept. `replica` follows them; `election` and `sessions` are the
pure rules of who may decide and who is alive; `runtime` ties it all together with the clock; `upkeep`, `retention` and
`collector` do the slow work. A broker sees `client` only.

The loop of a leading controller: take waiting commands; decide on the state after entry N - 1; write entry N; apply;
reply. Nobody hears of a fact before it is durable, and after an unknown outcome only the same bytes may be tried again.
"""
