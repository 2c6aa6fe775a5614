"""The node agent: measures one node of a cluster, tells the cluster, and keeps the tokens of its cards true.

One round: measure (measuring) → name what is lost by what was known (knowledge) → what the node's object
should say (knowledge, announcing) → patch it where it says something else (nodeapi) → /metrics (board).
"""
