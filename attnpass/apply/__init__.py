"""A decision put into a copy of the graph: the only room that changes a graph that holds calls."""
