"""Brings rendered objects into a cluster: the difference, apply, prune, wait, and what was good before.

One apply, from the command to the record:

1. `manifests` checks that every object is ours and of a kind that we apply;
2. `door` opens the API server, the only place that knows the Kubernetes client;
3. `difference` asks the server what an apply would do, object by object, in a dry run;
4. `comparing`, `restarts`, `placing` and `pruning` (pure) put that into words: what changes, what restarts
   and for how long, what no node would run, what goes;
5. `applying` applies what differs, in the given order, then deletes what is no longer rendered;
6. `waiting` follows Deployments and DaemonSets until they are ready; `diagnosis` says why one is not;
7. `history` keeps what became ready, for `rollback`.

The other way, `deleting` takes it all out, and `marks` what agents wrote on the nodes.
"""
