"""Work in pieces, spread over processes of this machine or over a Dask cluster.  Knows nothing of what is worked on."""
