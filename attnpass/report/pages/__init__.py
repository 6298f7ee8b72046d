"""The report as HTML: a page for each graph, and one index for a folder of them. Offline, and without a script."""
