"""What a captured graph says: its values, who holds them, the state around each node. Read only.

`attnpass.graph.reading` is the door: `read` turns any graph (Dynamo's, an exported program's, a traced one) into a
`Reading`: pure ATen overloads on values, without writes, views of memory or spellings. Everything that finds and
understands attention reads that and nothing else.
"""
